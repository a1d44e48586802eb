"""A tiny run, recorded by the real writers and the real trainer, with a resume in it, is trained again from its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from typer.testing import CliRunner

from learner.assembly import assemble
from learner.batch import read_batch
from learner.checkpoint import CheckpointWriter
from learner.checkpoint_folder import complete
from learner.shards import weight_shards
from medr3.cli import app
from medr3.config import RunConfig, load
from medr3.observe.metrics_file import MetricsFile
from tests.learner_episodes import sample_group, tiny_model, tiny_model_dir
from trajectories.events import EventKind, EventLog
from trajectories.schema import WeightVersion
from trajectories.store import TrajectoryStore, with_ending

ROOT = Path(__file__).parents[2]
PHASES = {1: "reasoning", 2: "reasoning", 3: "retrieval"}  # two learning rates


class RecordedRun:
    """Writes what a run writes while it trains; no engine, no loop."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config
        self.store, self.log = TrajectoryStore(folder / "trajectories"), EventLog(folder / "events.jsonl")
        self.log.append(EventKind.RUN_STARTED, run_id="tiny", generation=1, max_staleness=0)
        tiny_model_dir(folder / "cold_start")
        (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
        self.start(1, 0)
        self.weights: dict[str, torch.Tensor] = {}

    def start(self, generation: int, step: int) -> None:
        """A fresh trainer, as a start and a resume from the beginning have it."""
        self.trainer = assemble(self.folder / "cold_start", self.config.learner, torch.device("cpu"))
        self.version = WeightVersion(generation, step)
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", resume_step=step)

    def step(self, first_group: int) -> None:
        """Two groups of four are trained; a third was dropped, and is stored before them."""
        step = self.version.number + 1
        phase = next(phase for phase in self.config.curriculum.phases if phase.name == PHASES[step])
        groups = [sample_group(tiny_model(), first_group + i, version=self.version) for i in range(3)]
        measured = self.trainer.step(read_batch(groups[1:]), step=step, current=self.version, learning_rate=phase.learning_rate)
        endings = [("dropped", "stale", -1), ("trained", "", step), ("trained", "", step)]
        stored = [with_ending(group, *ending, self.version) for group, ending in zip(groups, endings, strict=True)]
        self.store.write(step, self.version.generation, stored)
        for group in groups[1:]:
            self.log.append(EventKind.TRAINED, group_id=group["group_id"][0].as_py(), engine_id="e0", step=step, episodes=4)
        self.metrics.append(step, phase.name, {f"learner/{name}": value for name, value in measured.items()})
        self.version = WeightVersion(self.version.generation, step)

    def checkpoint(self) -> None:
        step, name = self.version.number, f"checkpoints/step-{self.version.number:06d}"
        writer = CheckpointWriter(lambda _, failure: None if not failure else pytest.fail(failure))
        writer.start(self.trainer, self.folder / name)
        writer.wait()
        complete(self.folder / name, ranks=1)
        self.log.append(EventKind.CHECKPOINT, step=step, folder=name)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """Step 1 of generation 1 was taken back by a resume; generation 2 trained steps 1 to 3 on other groups."""
    rollout = ["rollout.group_size=4", "learner.max_mismatch=10", "learner.microbatch_tokens=64"]
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    run = RecordedRun(tmp_path_factory.mktemp("runs") / "tiny", load(ROOT / "configs/demo.yaml", rollout))
    run.step(first_group=0)
    run.log.append(EventKind.RESUMED, generation=2, step=0, position=1)
    run.start(generation=2, step=0)
    for first_group in (3, 6, 9):
        run.step(first_group)
        if first_group == 6:
            run.checkpoint()
    run.weights = {shard.name: shard.rows.clone() for shard in weight_shards(run.trainer.policy)}
    dist.destroy_process_group()
    return run


def replay(*arguments: str | Path) -> tuple[int, list[str], str]:
    """Exit code, printed lines, and the error that a person would see."""
    done = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    return done.exit_code, done.stdout.splitlines(), "" if done.exception is None else str(done.exception)


def test_the_surviving_lineage_gives_the_recorded_figures_and_the_same_model(recorded: RecordedRun, tmp_path: Path) -> None:
    code, lines, error = replay(recorded.folder, "--out", tmp_path / "model")
    assert (code, lines[-1].split(":")[0]) == (0, "agrees"), (lines, error)
    assert [line.split()[:2] for line in lines[1:4]] == [["1", "reasoning"], ["2", "reasoning"], ["3", "retrieval"]]
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert again.keys() == recorded.weights.keys()
    for name, weights in recorded.weights.items():
        torch.testing.assert_close(again[name], weights, rtol=0, atol=1e-6)


def test_a_later_step_starts_from_its_checkpoint(recorded: RecordedRun) -> None:
    code, lines, _ = replay(recorded.folder, "--from", "3", "--steps", "1")
    assert (code, len(lines), lines[1].split()[0]) == (0, 3, "3")


def test_a_figure_that_differs_is_named_with_its_step(recorded: RecordedRun, tmp_path: Path) -> None:
    changed = shutil.copytree(recorded.folder, tmp_path / "changed")
    rows = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    rows[1]["learner/grad_norm"] *= 1.1
    (changed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, lines, _ = replay(changed)
    assert code == 1
    assert lines[-1].startswith("differs first at step 2 in grad_norm by ")


def test_another_setting_prints_its_own_figures_and_claims_nothing(recorded: RecordedRun) -> None:
    code, lines, _ = replay(recorded.folder, "learner.minibatches=1", "--steps", "1")
    assert code == 0
    recorded_norm = json.loads((recorded.folder / "metrics.jsonl").read_text().splitlines()[0])["learner/grad_norm"]
    assert abs(float(lines[1].split()[4]) - recorded_norm) > 1e-3
    assert "overridden" in lines[-1]


def test_weights_that_another_setting_makes_may_leave_the_recorded_engines_behind(recorded: RecordedRun) -> None:
    """The rows are then off-policy from the second step on, which is no fault of engine or learner."""
    code, lines, error = replay(recorded.folder, "learner.mismatch_warn=1.0e-12", "learner.max_mismatch=1.0e-11")
    assert (code, len(lines)) == (0, 5), (lines, error)


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        ("", ["--from", "7"], "step 7 was not recorded, steps 1 to 3 were"),
        ("", ["--from", "2"], "no checkpoint of step 1 was kept, so step 2 cannot be the first: replay --from 1 or 3"),
        ("", ["--from", "2", "--steps", "9"], "step 4 was not recorded"),
        ("", ["learner.minibatch=1"], "learner.minibatch: no such setting: did you mean minibatches?"),
        ("trajectories", [], "has no trajectories, so there is nothing to replay"),
        ("trajectories/step-*", [], "none of its steps is recorded in trajectories/"),
        ("cold_start", [], "cold_start is gone"),
        ("cold_start/model.safetensors", [], "cold_start holds neither model.safetensors nor"),
        ("checkpoints/*/state.json", ["--from", "3"], "it has no state.json"),
    ],
)
def test_bad_input_is_one_line(recorded: RecordedRun, tmp_path: Path, spoil: str, arguments: list[str], words: str) -> None:
    run = shutil.copytree(recorded.folder, tmp_path / "run")
    for path in run.glob(spoil) if spoil else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, _, error = replay(run, *arguments)
    assert code == 1  # CliRunner's for an exception; `main` turns a UserError into exit 2
    assert words in error
    assert len(error.splitlines()) == 1


def test_no_such_run_is_one_line() -> None:
    assert "no such run folder" in replay("no-such-run")[2]
