"""Complete training steps: generate, search, reward, learn, sync. Beside them, with a peer, TRL's GRPOTrainer on the same prompts.

::

    medr3 train   phase without retrieval: so many steps      ─┐ same weights, prompts, group size, most tokens, temperature,
                  phase with retrieval: so many steps          │ learning rate, one optimiser step of fp32 for each batch
    TRL           the first phase's prompts: so many steps    ─┘ by transformers' generate, and by its continuous batching

A round is one run of each, one after the other: a training cannot be held between two steps. Steps are compared, by the clock and by
processor time, and the comparison is refused where one side samples another number of tokens than the other. vLLM as TRL's generator is
left out: TRL 1.16 takes vLLM up to 0.31, and the CPU build that this project pins is 0.32.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml

from actors.tokens import EpisodeTokenizer
from bench.harness import Result, figure, ratio, result
from bench.processor_time import ProcessorTime, processor_time
from bench.training import REPOSITORY, training, wait_for_rows

SCRIPT = Path(__file__).parent / "peers" / "trl_train.py"
GROUP, GROUPS = 8, 32
LEARNING_RATE = 1e-7  # the model must stay the one that it was: lengths are part of the work
MAX_TOKENS = 64
WARM_UP = 2  # of each phase; the first step allocates and compiles
OVER_CONTINUOUS, OVER_GENERATE = 10.0, 1.5
WITH_OVER_WITHOUT = 0.85  # several turns of one episode share its prompt, and searches hide behind other episodes
SAME_TOKENS = 0.15  # sampled on both sides with other random numbers
STARTED_WITHIN_S = 900.0
TRL_WITHIN_S = 600.0
TRIED = ((64, 1), (256, 1), (256, os.cpu_count() or 1))  # rows of one of TRL's passes, and threads; the fastest pair is taken
WITHOUT, WITH = "without retrieval", "with retrieval"
# Gates are off: this model need not answer right, only write in the right form.
QUICK_START = {"drill_gate": 0.0, "drills_kept_gate": 0.0, "imitation_gate": 0.0, "imitation_steps": 150}


class Steps(NamedTuple):
    """Of one run and phase, per step: seconds, processor seconds of all processes, sampled tokens."""

    seconds: float
    processor: float
    tokens: float
    idle: float = 0.0  # share of the cores' time that other programs left and the run did not use


def run(peer: Path | None = None, steps: int = 12, rounds: int = 3, peer_steps: int = 3) -> Result:
    """Minutes: a cold start, and in every round a training and, with a peer, two of TRL's."""
    measured: dict[str, list[Steps]] = {}
    notes = [
        f"{GROUPS} groups of {GROUP}, at most {MAX_TOKENS} tokens a turn; {steps} steps a phase after {WARM_UP}, {rounds} round(s)"
    ]
    with tempfile.TemporaryDirectory() as parent:
        model: Path | None = None
        fastest: tuple[int, int] | None = None
        for number in range(rounds):
            folder = Path(parent) / f"run-{number}"
            for name, each in trained(folder, model, steps).items():
                measured.setdefault(name, []).append(each)
            model = model or folder / "cold_start"
            if peer is None:
                continue
            trl = Trl(peer, Path(parent) / "trl", model, prompts_of(folder, WARM_UP))
            fastest = fastest or trl.fastest()
            for name, continuous in (("TRL, generate", False), ("TRL, continuous batching", True)):
                measured.setdefault(name, []).append(trl.steps(*fastest, continuous=continuous, steps=peer_steps))
            notes = [*notes[:1], f"{trl.version}, {fastest[0]} rows a pass and {fastest[1]} thread(s), the fastest"]
    return report(measured, notes)


def report(measured: dict[str, list[Steps]], notes: list[str]) -> Result:
    """Medians over rounds; every ratio is a median of ratios within a round."""
    require_same_work(measured)
    figures = []
    for name, each in measured.items():
        seconds = [steps.seconds for steps in each]
        figures += [
            _row(f"{name}: steps", [1 / taken for taken in seconds], "steps/s"),
            _row(f"{name}: model tokens", [steps.tokens / steps.seconds for steps in each], "tokens/s"),
            _row(f"{name}: processor time of a step", [steps.processor for steps in each], "s"),
            _row(f"{name}: model tokens of a step", [steps.tokens for steps in each], "tokens"),
        ]
    ours = measured[WITHOUT]
    ratios = [
        ratio(f"steps a second over {name}", _gain(measured[name], ours), goal)
        for name, goal in (("TRL, continuous batching", OVER_CONTINUOUS), ("TRL, generate", OVER_GENERATE))
        if name in measured
    ]
    ratios += [
        ratio(f"processor time of a step under that of {name}", _cost(measured[name], ours), 1.0)
        for name in measured
        if name.startswith("TRL")
    ]
    if not ratios:
        notes = [*notes, "TRL was left out: name its environment with --peer"]
    kept = statistics.median(
        two.tokens / two.seconds * one.seconds / one.tokens for one, two in zip(ours, measured[WITH], strict=True)
    )
    ratios.append(ratio("model tokens a second with retrieval over without", kept, WITH_OVER_WITHOUT))
    return result(figures, ratios, notes, threads=1)


def require_same_work(measured: dict[str, list[Steps]]) -> None:
    """TRL samples as many tokens a step as the phase whose prompts it was given."""
    expected = statistics.median(steps.tokens for steps in measured[WITHOUT])
    for name, each in measured.items():
        tokens = statistics.median(steps.tokens for steps in each)
        if name.startswith("TRL") and abs(tokens - expected) > SAME_TOKENS * expected:
            raise RuntimeError(
                f"{name} samples {tokens:.0f} tokens a step, medr3 {expected:.0f}: the two do not do the same work"
            )


def _gain(slower: list[Steps], faster: list[Steps]) -> float:
    return statistics.median(one.seconds / two.seconds for one, two in zip(slower, faster, strict=True))


def _cost(theirs: list[Steps], ours: list[Steps]) -> float:
    return statistics.median(one.processor / two.processor for one, two in zip(theirs, ours, strict=True))


def _row(name: str, values: list[float], unit: str) -> Result:
    return {**figure(name, statistics.median(values), unit), "lowest": min(values), "highest": max(values)}


# --- this side


def trained(folder: Path, model: Path | None, steps: int) -> dict[str, Steps]:
    """One training of both phases, each measured after its warm-up, from row to row: all that happens between two steps counts."""
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings(folder, model, WARM_UP + steps)))
    with training(folder, str(config), "--resume", "never") as process:

        def spent(step: int) -> tuple[float, ProcessorTime]:
            row = wait_for_rows(step, process, folder, STARTED_WITHIN_S)[step - 1]
            return float(row["time"]), processor_time(process.pid)

        found = {}
        for number, name in enumerate((WITHOUT, WITH)):
            first, last = number * (WARM_UP + steps) + WARM_UP, (number + 1) * (WARM_UP + steps)
            (began, before), (ended, after) = spent(first), spent(last)
            measured = wait_for_rows(last, process, folder, STARTED_WITHIN_S)[first:last]
            tokens = GROUP * GROUPS * sum(row["rollout/response_tokens"] for row in measured)
            used = after - before
            found[name] = Steps((ended - began) / steps, used.tree / steps, tokens / steps, used.idle_share)
    return found


def settings(folder: Path, model: Path | None, steps: int) -> dict[str, Any]:
    """The demo, with a phase without and one with retrieval, and nothing that interrupts them."""
    demo: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    phases = yaml.safe_load((REPOSITORY / "configs" / "phases" / "demo.yaml").read_text(encoding="utf-8"))["phases"]
    demo["run"] |= {"name": "bench", "folder": str(folder), "checkpoint_every": 10_000}
    demo["rollout"] |= {"group_size": GROUP, "groups_per_step": GROUPS}
    demo["learner"] |= {"minibatches": 1}
    demo["budget"] |= {"max_turn_tokens": MAX_TOKENS}
    demo["evaluation"] = {"probe_questions": 10, "test_questions": 10}
    demo["cold_start"] = QUICK_START
    if model is not None:
        demo["model"] = {"path": str(model)}
    fixed = {"min_steps": steps, "max_steps": steps, "learning_rate": LEARNING_RATE, "plateau": {"probe_every": 1_000}}
    chosen = [phase | {"replay": 0} | fixed for phase in (phases[0], phases[-1])]
    chosen[-1]["max_steps"] = steps + 1  # the last row is written before the run ends
    demo["curriculum"] = {"phases": chosen}
    return demo


def prompts_of(folder: Path, skip: int) -> list[list[int]]:
    """Token ids of the first phase's prompts, a step's after the other, without those of the first steps."""
    prompts: dict[str, list[int]] = {}
    for row in _rows_in_order(folder):
        if row["phase"] == "reasoning" and row["trained_step"] > skip:
            prompts.setdefault(row["group_id"], row["token_ids"][: row["segments"][0]["end"]])
    return list(prompts.values())


def _rows_in_order(folder: Path) -> Iterable[dict[str, Any]]:
    columns = ["phase", "group_id", "token_ids", "segments", "trained_step"]
    for path in sorted((folder / "trajectories").glob("step-*.parquet")):
        yield from pq.read_table(path, columns=columns).to_pylist()


# --- the peer


class Trl:
    """Its trainings of some steps each, in a process and an environment of their own."""

    def __init__(self, environment: Path, folder: Path, model: Path, prompts: list[list[int]]) -> None:
        self.version = ""
        self._python, self._folder, self._prompts = environment / "bin" / "python", folder, prompts
        self._stop = EpisodeTokenizer.from_folder(str(model), tools=False).tags.stop_token_ids
        if not folder.exists():
            folder.mkdir()
            for name in ("config.json", "model.safetensors"):  # without the tokenizer, which TRL's transformers need not know
                shutil.copy(model / name, folder / name)

    def fastest(self) -> tuple[int, int]:
        """Rows a pass and threads."""
        return min(TRIED, key=lambda pair: self.steps(*pair, continuous=False, steps=1).seconds)

    def steps(self, rows: int, threads: int, *, continuous: bool, steps: int) -> Steps:
        """One training: a first step that does not count, then so many."""
        chosen = {
            "prompts": self._prompts[: GROUPS * (steps + 1)], "stop_ids": list(self._stop), "group": GROUP, "batch": GROUP * GROUPS,
            "rows": rows, "threads": threads, "steps": steps + 1, "learning_rate": LEARNING_RATE, "max_tokens": MAX_TOKENS,
            "temperature": 1.0, "continuous": continuous,
        }  # fmt: skip
        (self._folder / "settings.json").write_text(json.dumps(chosen))
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HOME": str(self._folder),
        }
        log = self._folder / "trl.log"
        with log.open("w") as said:
            done = subprocess.run(
                [str(self._python), str(SCRIPT), str(self._folder)], stdout=subprocess.PIPE, stderr=said, text=True,
                env=environment, timeout=TRL_WITHIN_S, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"TRL's process ended: {log.read_text().strip().splitlines()[-1]}")
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        self.version = answer["version"]
        return Steps(
            *(statistics.median(step[name] for step in answer["steps"]) for name in ("seconds", "processor_s", "tokens"))
        )
