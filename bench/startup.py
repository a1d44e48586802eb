"""How long a person waits for the first step: `medr3 train` cold, warm and resumed, and who waited for whom meanwhile.

::

    process ─▶ index ─┐                     ┌─ learner: controller ▶ workers ▶ model, published ─┐
               Ray ───┴─▶ model (taught) ─▶ ├─ retrieval: Serve ▶ replica ▶ index ───────────────┼─▶ phase ▶ probe ▶ first step
                                            └─ engines: vLLM ▶ weights proved ───────────────────┘

Warm: the index and the cold-started model are in the folder, and the run begins anew. The wall clock suffers from whatever else the
machine does; the processor time of all processes of the run hardly does, and is what two cores must at least be given for.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from bench.harness import Result, Spread, figure, interleaved, ratio, result
from bench.processor_time import ProcessorTime, by_process, processor_time
from bench.training import REPOSITORY, rows, said, training, wait_for_rows
from trajectories.events import Event, EventKind, read_events

WARM_S, RESUMED_S, HELP_S = 25.0, 30.0, 0.7
WITHIN_S = 900.0
SHOWN = 8  # processes of the timeline's last line
# The demo, with a model that needs only to speak the right form and without long examinations: its teaching is not what is measured.
QUICK = (
    "run.name=bench", "run.checkpoint_every=1", "evaluation.probe_questions=10", "evaluation.test_questions=10",
    "cold_start.drill_gate=0", "cold_start.drills_kept_gate=0", "cold_start.imitation_gate=0", "cold_start.imitation_steps=100",
)  # fmt: skip


class Start(NamedTuple):
    """Of one start, from the process's begin to its first step: seconds, processor time, moments, and who used the processor."""

    seconds: float
    processor: ProcessorTime
    moments: dict[str, float]
    processes: dict[str, float]


def run(repetitions: int = 3) -> Result:
    """One cold start, warm ones, and a resume of the last of them."""
    answers = interleaved({"help": help_seconds}, repetitions=5, warm_up=1)["help"]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        cold = started(folder, "--resume", "never")
        warm = [started(folder, "--resume", "never") for _ in range(repetitions)]
        resumed = started(folder)
    return report(answers, cold, warm, resumed)


def report(answers: Spread, cold: Start, warm: list[Start], resumed: Start) -> Result:
    """Seconds against goals; the timelines are notes."""
    seconds = statistics.median(start.seconds for start in warm)
    taught = cold.moments["model"] - max(cold.moments["index"], cold.moments["ray"])
    figures = [
        figure("cold: first step", cold.seconds, "s"),
        figure("cold: of these, teaching the model", taught, "s"),
        {**figure("warm: first step", seconds, "s"), **_ends([start.seconds for start in warm])},
        figure("warm: processor time until then", statistics.median(start.processor.tree for start in warm), "s"),
        figure("warm: the machine's share that other programs took", statistics.median(map(_others, warm)), ""),
        figure("resumed: first step", resumed.seconds, "s"),
        figure("resumed: processor time until then", resumed.processor.tree, "s"),
        {**figure("medr3 --help", answers.median, "s"), **_ends([answers.lowest, answers.highest])},
    ]
    ratios = [
        ratio("warm start in s", seconds, WARM_S, at_most=True),
        ratio("resume in s", resumed.seconds, RESUMED_S, at_most=True),
        ratio("medr3 --help in s", answers.median, HELP_S, at_most=True),
    ]
    notes = [f"{name}: {timeline(start)}" for name, start in (("cold", cold), ("warm", warm[-1]), ("resumed", resumed))]
    used = ", ".join(f"{name} {seconds:.1f}" for name, seconds in list(warm[-1].processes.items())[:SHOWN])
    return result(figures, ratios, [*notes, f"warm, processor seconds by process: {used}"], threads=1)


def timeline(start: Start) -> str:
    """When each part was there, in seconds since the process began.

    Example:
        >>> timeline(Start(9.5, ProcessorTime(1, 1, 1), {"ray": 3.0, "index": 2.0}, {}))
        'index 2.0, ray 3.0, first step 9.5'
    """
    moments = sorted(start.moments.items(), key=lambda moment: moment[1])
    return ", ".join(f"{name} {at:.1f}" for name, at in [*moments, ("first step", start.seconds)])


def started(folder: Path, *arguments: str) -> Start:
    """One start, ended by a first signal after its first step: with a checkpoint."""
    known = 0 if "never" in arguments else len(rows(folder))
    if not known and (folder / "metrics.jsonl").exists():
        (folder / "metrics.jsonl").unlink()  # the run removes it as well, but only when it has begun
    config = REPOSITORY / "configs" / "demo.yaml"
    began = time.time()
    with training(folder, str(config), f"run.folder={folder}", *QUICK, *arguments) as process:
        before = processor_time(process.pid)
        wait_for_rows(known + 1, process, folder, WITHIN_S)
        seconds, processes = time.time() - began, _by_name(process.pid)
        after = processor_time(process.pid)
    if process.returncode:
        raise RuntimeError(f"the training in {folder} ended with {process.returncode}: {said(folder)[-2000:]}")
    return Start(seconds, after - before, moments(read_events(folder / "events.jsonl").events, began), processes)


def moments(events: list[Event], began: float) -> dict[str, float]:
    """Of the latest start among the events."""
    last = next(event for event in reversed(events) if event.kind is EventKind.SERVICES_READY)
    found = {name: at - began for name, at in last["ready"].items()}
    for event in events[events.index(last) :]:
        if event.kind in (EventKind.PHASE_ENTERED, EventKind.PROBE, EventKind.ADMITTED):
            found.setdefault(event.kind.value.replace("_", " "), event.time - began)
    return found


def _by_name(pid: int) -> dict[str, float]:
    """Processor seconds of a run's processes by what they call themselves; most first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for number, used in by_process(pid).items():
        seconds[_name(number)] += used
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _name(pid: int) -> str:
    """ray::RolloutActor of ray::RolloutActor.run_group, or else the script, module or program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    if "::" in words[0]:
        return "::".join(words[0].split("::")[:2]).partition(":medr3")[0].partition(".")[0]
    if "-m" in words:
        return words[words.index("-m") + 1]
    return Path(next((word for word in words if word.endswith(".py")), words[0])).name


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "medr3.cli", "--help"], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _others(start: Start) -> float:
    return (start.processor.busy - start.processor.tree) / start.processor.total


def _ends(values: list[float]) -> dict[str, float]:
    return {"lowest": min(values), "highest": max(values)}
