"""A run folder of any number of steps, written by what writes a run's, and what reading it costs those who do."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.growth_points import Meter, Reading
from trajectories.schema import WeightVersion

GROUPS, MEMBERS, TOKENS = 4, 2, 48  # of a step: few and short, since the number of steps is what grows
CHECKPOINT_EVERY, PROBE_EVERY = 10, 3
PHASE = "joint"


def stored(_: int, steps: int, folder: Path) -> Callable[[], Reading]:
    """Writes the run, once; a step then opens it in every way that a run or a person does."""
    with tempfile.TemporaryDirectory() as small:  # what is imported on the way is nobody's cost
        write_run(Path(small), 1)
        read_run(Path(small), Meter())
    meter = Meter()
    with meter.of("all written"):
        write_run(folder, steps)

    def step() -> Reading:
        read_run(folder, meter)
        return meter.reading()

    return step


def read_run(folder: Path, meter: Meter) -> None:
    from trajectories.audit import audit
    from trajectories.store import stored_steps

    report = of_the_application("medr3.observe.report")
    with meter.of("opened"):
        stored_steps(folder / "trajectories")
    with meter.of("audited"):
        found = audit(folder)
    if not found.ok:
        raise RuntimeError(f"the run that was written for this breaks a promise: {found.violations[0]}")
    with meter.of("resumed"):
        resume(folder)
    with meter.of("reported"):
        report.write_report(folder)


def resume(folder: Path) -> int:
    """What a process that goes on reads before its first step, checkpoint and index aside; the generation that it would begin."""
    from trajectories.events import EventLog, read_events
    from trajectories.lineage import surviving
    from trajectories.recorder import Recorder
    from trajectories.spool import read_whole_spool

    manifest, resuming, recovery = (of_the_application(f"medr3.run.{name}") for name in ("manifest", "resuming", "recovery"))
    state = manifest.open_manifest(folder)
    generation: int = resuming.next_generation(folder, state)
    EventLog(folder / "events.jsonl").close()
    metrics_file = of_the_application("medr3.observe.metrics_file").MetricsFile
    metrics_file(folder / "metrics.jsonl", resume_step=state.step).close()
    Recorder(folder / "trajectories", generation).close()
    lineage = surviving(read_events(folder / "events.jsonl").events)
    recovery.recover(read_whole_spool(folder / "trajectories"), lineage, state.ledger, state.step, generation, 0)
    return generation


def write_run(folder: Path, steps: int) -> None:
    """A run that keeps every promise: synchronous, one phase, one engine, a probe and a checkpoint now and then."""
    from bench.trajectories import episodes
    from trajectories.events import EventKind, EventLog
    from trajectories.recorder import Recorder
    from trajectories.schema import VersionSpan, to_table
    from trajectories.store import with_ending

    pattern = episodes(0, TOKENS)[:MEMBERS]
    recorder = Recorder(folder / "trajectories", generation=1)
    metrics = of_the_application("medr3.observe.metrics_file").MetricsFile(folder / "metrics.jsonl")
    with EventLog(folder / "events.jsonl") as events:

        def publish(step: int) -> None:
            version = str(WeightVersion(1, step))
            events.append(EventKind.PUBLISHED, version=version, step=step, checksum="0" * 32)
            events.append(EventKind.ACK, engine_id="engine-0.0", version=version, ok=True, checksum="0" * 32, reason="")

        events.append(EventKind.RUN_STARTED, run_id="growth", generation=1, max_staleness=0)
        publish(0)
        events.append(EventKind.PHASE_ENTERED, phase=PHASE, step=0)
        for step in range(1, steps + 1):
            names = [f"g{(step - 1) * GROUPS + number:07d}" for number in range(GROUPS)]
            tables = []
            for name in names:
                events.append(EventKind.ADMITTED, group_id=name, question_id=f"q-{name}", phase=PHASE)
                rows = [
                    replace(
                        each, run_id="growth", group_id=name, episode_id=f"{name}-{n}", question_id=f"q-{name}", phase=PHASE,
                        versions=[VersionSpan(1, step - 1, span.start, span.end) for span in each.versions],
                    )
                    for n, each in enumerate(pattern)
                ]  # fmt: skip
                tables.append(to_table(rows))
                recorder.finished(tables[-1])
            publish(step)
            for name in names:
                events.append(
                    EventKind.TRAINED, group_id=name, engine_id="engine-0.0", step=step, episodes=MEMBERS, age=0, dropped_samples=[]
                )  # fmt: skip
            learner = WeightVersion(1, step - 1)
            recorder.step(step, [with_ending(table, "trained", "", step, learner) for table in tables], names)
            if step % PROBE_EVERY == 0:
                events.append(EventKind.PROBE, phase=PHASE, step=step, score=0.5, n=200)
            if step % CHECKPOINT_EVERY == 0:
                recorder.sync()
                events.append(EventKind.CHECKPOINT, step=step, folder=f"checkpoints/step-{step:06d}-generation-1")
            metrics.append(step, PHASE, figures_of(step))
        recorder.close()
        known = events.position
    metrics.close()
    manifest = of_the_application("medr3.run.manifest")
    record = manifest.CheckpointRecord(
        folder="checkpoints/step", step=steps, phase=PHASE, phase_index=0, score=None, probed_at=None
    )
    state = manifest.Manifest(
        run_id="growth", step=steps, generation=1, checkpoints=[record], config_hash="", index_hash="", tracker_id="",
        events=known, ledger={"open": []}, sampler={}, controller={}, progress={},
    )  # fmt: skip
    manifest.write_manifest(folder, state)


def figures_of(step: int) -> dict[str, float]:
    """As many figures as a step has, under names that a run gives."""
    registry = of_the_application("medr3.observe.registry")
    return {name: 1.0 + math.sin(step / 7) for name, metric in registry.METRICS.items() if not metric.labels}


def of_the_application(name: str) -> Any:
    """By name: the application may import benchmarks, and not the other way round; other benchmarks start its commands instead,
    whose imports would hide what is measured here."""
    return import_module(name)
