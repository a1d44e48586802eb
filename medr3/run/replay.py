"""Trains again on what a run recorded, without engines: to look into a step, and to prove that a change of the learner changes nothing.

::

    events ▶ the lineage that survived its resumes ▶ per step: trained rows, version, learning rate, metrics as they were
    cold start or checkpoint ▶ trainer, one rank ▶ per step: train, compare ▶ verdict
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import torch
import torch.distributed as dist

from learner.assembly import assemble
from learner.batch import COLUMNS, EpisodeBatch, read_batch
from learner.checkpoint import load_training_state
from learner.checkpoint_folder import CheckpointRefused
from learner.export import export_model
from learner.loading import ModelRefused
from learner.mismatch import EngineMismatch
from learner.trainer import PolicyTrainer, TrainingDiverged
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.observe.metrics_file import read_metrics
from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER
from trajectories.events import EventKind, read_events
from trajectories.groups import Outcome
from trajectories.lineage import surviving
from trajectories.schema import WeightVersion
from trajectories.store import StoredStep, stored_steps

CONFIG, METRICS, COLD_START = "config.json", "metrics.jsonl", "cold_start"
COMPARED = ("loss", "grad_norm", "reward_mean", "mismatch_mean")
# Rounding differs between kernels, packings and numbers of workers, and training amplifies it: a demo of 60 steps, trained with
# padded rows and replayed packed, came to a relative 4e-5. Mismatches of 1e-7 are rounding alone.
RELATIVE, ABSOLUTE = 1e-3, 1e-5


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One learner step of a run: what it was fed, and what it measured."""

    step: int
    phase: str
    rows: StoredStep
    metrics: dict[str, float | None]

    def read(self) -> tuple[EpisodeBatch, WeightVersion]:
        """The groups that were trained, in their order, and the version of the weights that they met."""
        columns = [*COLUMNS, "outcome", "trained_step", "learner_generation", "learner_number"]
        table = self.rows.read(columns)
        trained = pc.and_(pc.equal(table["outcome"], Outcome.TRAINED.value), pc.equal(table["trained_step"], self.step))
        table = table.filter(trained)
        version = WeightVersion(table["learner_generation"][0].as_py(), table["learner_number"][0].as_py())
        return read_batch([table]), version


@dataclass(frozen=True, slots=True)
class Recording:
    """What of a run can be trained again."""

    folder: Path
    steps: dict[int, RecordedStep]
    checkpoints: dict[int, Path]  # by the last step that they hold

    def between(self, first: int, count: int | None) -> list[RecordedStep]:
        """The steps to replay; refused where one was not recorded."""
        last = max(self.steps) if count is None else first + count - 1
        for step in range(first, max(first, last) + 1):
            if step not in self.steps:
                raise UserError(
                    f"{self.folder}: step {step} was not recorded, steps {min(self.steps)} to {max(self.steps)} were:"
                    " choose with --from and --steps"
                )
        return [self.steps[step] for step in range(first, last + 1)]

    def start_of(self, step: int) -> Path | None:
        """The checkpoint that a step started from; None is the cold start."""
        if step == 1:
            return None
        if step - 1 not in self.checkpoints:
            startable = ", ".join(str(kept + 1) for kept in sorted(self.checkpoints) if kept + 1 in self.steps)
            raise UserError(
                f"{self.folder}: no checkpoint of step {step - 1} was kept, so step {step} cannot be the first:"
                f" replay --from 1{' or ' + startable if startable else ''}, or train with a greater run.keep_checkpoints"
            )
        return self.checkpoints[step - 1]


def open_recording(folder: Path) -> Recording:
    """Reads what a run folder says of its steps; rows are read one step at a time, when they are trained."""
    for name in (CONFIG, EVENTS_FILE, METRICS, TRAJECTORIES_FOLDER):
        if not (folder / name).exists():
            raise UserError(f"{folder}: has no {name}, so there is nothing to replay: name the folder of a run that trained")
    lineage = surviving(read_events(folder / EVENTS_FILE).events)
    metrics = {row["step"]: row for row in read_metrics(folder / METRICS)}
    trained = {event["step"] for event in lineage.events if event.kind is EventKind.TRAINED}
    steps = {
        stored.step: RecordedStep(stored.step, metrics[stored.step]["phase"], stored, metrics[stored.step])
        for stored in stored_steps(folder / TRAJECTORIES_FOLDER)
        if stored.step in trained & metrics.keys() and lineage.survives(stored.generation, stored.step)
    }
    if not steps:
        raise UserError(f"{folder}: none of its steps is recorded in {TRAJECTORIES_FOLDER}/: replay needs the rows of a step")
    checkpoints = {
        event["step"]: folder / event["folder"]
        for event in lineage.events
        if event.kind is EventKind.CHECKPOINT and (folder / event["folder"]).is_dir()
    }
    return Recording(folder, steps, checkpoints)


def replay(
    recording: Recording, config: RunConfig, *, first: int, count: int | None, out: Path | None, overridden: bool
) -> int:
    """Prints one line a step and a verdict; returns the exit code: 1 where an unchanged configuration gave other figures."""
    steps, start = recording.between(first, count), recording.start_of(first)
    model_dir = recording.folder / COLD_START
    if not model_dir.is_dir():
        raise UserError(f"{model_dir} is gone: replay needs the model that the run started from")
    if out is not None and out.exists():
        raise UserError(f"{out} exists: name a new folder for the resulting model")
    torch.set_num_threads(config.learner.cpu_threads)
    device = torch.device("cuda" if config.learner.gpus_per_worker > 0 else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("learner.gpus_per_worker: this run's learner used GPUs, and torch sees none here: set it to 0")
    if overridden:  # other weights than the engines had make these rows off-policy, which is no fault to end for
        config = config.model_copy(update={"learner": config.learner.model_copy(update={"max_mismatch": math.inf})})
    found = None
    with one_rank(device):
        trainer = _start(model_dir, config, device, start)
        print(_header(overridden))
        scale, phase = _rate_scale(recording.folder, config), steps[0].phase if start else ""
        for step in steps:
            if step.phase != phase and phase:
                _enter(trainer, step, config)
            phase = step.phase
            replayed = _train(trainer, step, scale)
            print(_line(step, replayed), flush=True)
            found = found or first_difference(step, replayed)
        if out is not None:
            dtype = torch.bfloat16 if config.learner.dtype == "bfloat16" else torch.float32
            export_model(trainer.policy, model_dir, out, dtype)
            print(f"the resulting model is {out}")
    if overridden:
        print("the configuration was overridden, so these figures need not agree")
        return 0
    print(found or f"agrees: every figure of {len(steps)} steps within {RELATIVE:.1%} + {ABSOLUTE:g} of the recorded one")
    return 1 if found else 0


def first_difference(step: RecordedStep, replayed: dict[str, float]) -> str | None:
    """The first figure of a step beyond the tolerance, in words."""
    for name in COMPARED:
        recorded = step.metrics.get(f"learner/{name}")
        if recorded is None:  # the run did not measure it in this step
            continue
        value = replayed.get(name, math.nan)
        if not abs(value - recorded) <= RELATIVE * abs(recorded) + ABSOLUTE:  # written so that NaN differs
            return (
                f"differs first at step {step.step} in {name} by {abs(value - recorded):.3g}"
                f" (recorded {recorded:.6g}, replayed {value:.6g}; allowed {RELATIVE:.1%} + {ABSOLUTE:g})"
            )
    return None


def _start(model_dir: Path, config: RunConfig, device: torch.device, checkpoint: Path | None) -> PolicyTrainer:
    """The trainer as it was before the first step."""
    try:
        trainer = assemble(model_dir, config.learner, device)
        if checkpoint is not None:
            load_training_state(trainer, checkpoint)
    except (ModelRefused, CheckpointRefused) as error:
        raise UserError(str(error)) from None
    return trainer


def _rate_scale(folder: Path, config: RunConfig) -> dict[str, float]:
    """By phase, the learning rate asked for over that of the run: what warm-up and roll-backs made of it is in the record."""
    recorded = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["curriculum"]["phases"]
    asked = {phase.name: phase.learning_rate for phase in config.curriculum.phases}
    return {phase["name"]: asked[phase["name"]] / phase["learning_rate"] for phase in recorded if phase["name"] in asked}


def _enter(trainer: PolicyTrainer, step: RecordedStep, config: RunConfig) -> None:
    """What the run did to the learner between two phases. A checkpoint was taken after it."""
    rules = next((phase.on_entry for phase in config.curriculum.phases if phase.name == step.phase), None)
    if rules is not None and rules.optimizer == "reset":
        trainer.reset_optimizer()
    if rules is not None and rules.reference == "refresh":
        trainer.refresh_reference()


def _train(trainer: PolicyTrainer, step: RecordedStep, scale: dict[str, float]) -> dict[str, float]:
    batch, version = step.read()
    if step.phase not in scale:
        raise UserError(f"step {step.step} was trained in phase {step.phase!r}, which the configuration does not have")
    rate = (step.metrics["learner/learning_rate"] or 0.0) * scale[step.phase]
    try:
        return trainer.step(batch, step=step.step, current=version, learning_rate=rate)
    except (EngineMismatch, TrainingDiverged) as error:
        raise UserError(f"step {step.step}: {error}") from None


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone: the model is sharded and computes in the dtype of the run, as in a worker."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _header(overridden: bool) -> str:
    columns = "".join(f"{name:>28}" for name in COMPARED)
    return f"{'step':>5} {'phase':<12}{columns}   ({'new' if overridden else 'replayed'}, and how far from the recorded)"


def _line(step: RecordedStep, replayed: dict[str, float]) -> str:
    cells = []
    for name in COMPARED:
        recorded, value = step.metrics.get(f"learner/{name}"), replayed.get(name)
        if value is None:
            cells.append("–")
        else:
            cells.append(f"{value:.6g}" + ("" if recorded is None else f" ({value - recorded:+.1e})"))
    return f"{step.step:>5} {step.phase:<12}" + "".join(f"{cell:>28}" for cell in cells)
