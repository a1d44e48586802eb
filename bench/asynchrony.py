"""Whether searches that take a second leave the machine idle: two short trainings, asynchronous and synchronous, from one cold start.

Both are `medr3 train` with every process it has. Of each, the middle steps are measured: processor time of all its processes, and the
clock. What other programs took of the machine in that time is not counted as available.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bench.harness import Result, figure, ratio, result
from bench.processor_time import ProcessorTime, processor_time
from bench.training import REPOSITORY, rows, training, wait_for_rows

SEARCH_S = 1.0
STALENESS = 2
IDLE, OF_BOUND = 0.10, 0.85
WARM_UP, STEPS = 4, 12  # an asynchronous run first fills up: its slots are admitted all at once, and steps come unevenly
STARTED_WITHIN_S = 900  # a cold start of the first run included

# Of the demo, its last phase without what interrupts training: probes, examinations and checkpoints.
CHANGES: dict[str, Any] = {
    "run": {"name": "bench", "checkpoint_every": 10_000},
    "retrieval": {"inject_latency_s": SEARCH_S, "max_batch": 1024},  # so many calls may wait at a time
    "evaluation": {"probe_questions": 10, "test_questions": 10},
}
# Gates are off: this model need not answer right, only search and answer in the right form.
QUICK_START = {"drill_gate": 0.0, "drills_kept_gate": 0.0, "imitation_gate": 0.0, "imitation_steps": 400}


class Measured(NamedTuple):
    """Of the measured steps together."""

    seconds: float
    processor: ProcessorTime
    rows: list[dict[str, Any]]  # the run's own metrics of these steps


def run() -> Result:
    """Takes minutes: a cold start, and two trainings."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        runs = {STALENESS: train(folder / "asynchronous", STALENESS, None)}
        runs[0] = train(folder / "synchronous", 0, folder / "asynchronous" / "cold_start")
    return report(runs[STALENESS], runs[0])


def report(asynchronous: Measured, synchronous: Measured) -> Result:
    """The bound is what the synchronous run's processor time per step allows: work that asynchrony adds counts against it."""
    cores = os.cpu_count() or 1
    figures = []
    for name, each in (("asynchronous", asynchronous), ("synchronous", synchronous)):
        steps = len(each.rows)
        figures += [
            figure(f"{name}: steps", steps / each.seconds, "steps/s"),
            figure(f"{name}: processor time of a step", each.processor.tree / steps, "s"),
            figure(f"{name}: idle share of the machine", each.processor.idle_share, ""),
            figure(f"{name}: the machine's share that other programs took", _others(each), ""),
            figure(f"{name}: model tokens of an episode", _mean(each, "rollout/response_tokens"), "tokens"),
            figure(f"{name}: searches of an episode", _mean(each, "rollout/searches"), ""),
            figure(f"{name}: seconds that an episode searches", _mean(each, "rollout/search_s"), "s"),
        ]
    available = cores * asynchronous.seconds * (1 - _others(asynchronous))
    per_step = synchronous.processor.tree / len(synchronous.rows)
    ratios = [
        ratio("asynchronous: idle share of the machine", asynchronous.processor.idle_share, IDLE, at_most=True),
        ratio("asynchronous: steps over what processor time allows", len(asynchronous.rows) * per_step / available, OF_BOUND),
    ]
    return result(figures, ratios, [f"retrieval answers every call {SEARCH_S:g} s late"])


def train(folder: Path, max_staleness: int, model: Path | None) -> Measured:
    """One run, ended after its measured steps."""
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings(folder, max_staleness, model)))
    with training(folder, str(config), "--resume", "never") as process:
        begin = _after_step(WARM_UP, process, folder, STARTED_WITHIN_S)
        end = _after_step(WARM_UP + STEPS, process, folder, STARTED_WITHIN_S)
    return Measured(end[0] - begin[0], end[1] - begin[1], rows(folder)[WARM_UP : WARM_UP + STEPS])


def settings(folder: Path, max_staleness: int, model: Path | None) -> dict[str, Any]:
    """The demo's, changed."""
    configs = REPOSITORY / "configs"
    demo = yaml.safe_load((configs / "demo.yaml").read_text(encoding="utf-8"))
    last = yaml.safe_load((configs / "phases" / "demo.yaml").read_text(encoding="utf-8"))["phases"][-1]
    for room, changes in CHANGES.items():
        demo[room] = demo.get(room, {}) | changes
    demo["run"]["folder"] = str(folder)
    demo["rollout"]["max_staleness"] = max_staleness
    demo["cold_start"] = QUICK_START
    if model is not None:
        demo["model"] = {"path": str(model)}
    endless = {"min_steps": 1_000, "max_steps": 1_000, "plateau": {"probe_every": 1_000}}
    demo["curriculum"] = {"phases": [last | {"replay": 0} | endless]}
    return dict(demo)


def _after_step(step: int, process: subprocess.Popen[str], folder: Path, within_s: float) -> tuple[float, ProcessorTime]:
    """The clock and the processor's, when this many steps are written down."""
    wait_for_rows(step, process, folder, within_s)
    return time.perf_counter(), processor_time(process.pid)


def _mean(measured: Measured, name: str) -> float:
    return float(sum(row[name] for row in measured.rows) / len(measured.rows))


def _others(measured: Measured) -> float:
    return (measured.processor.busy - measured.processor.tree) / measured.processor.total
