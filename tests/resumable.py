"""Run folders that a resume can start from: real manifests of real ledgers, samplers and controllers, checkpoints of a few bytes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from curriculum.controller import Controller
from learner.checked_file import write_checked
from learner.checkpoint_folder import STATE, rank_files
from medr3.config import RunConfig, load
from medr3.run.manifest import CheckpointRecord, Manifest, open_manifest, write_json, write_manifest
from medr3.run.progress import Progress
from medr3.run.resuming import CONFIG
from medr3.run.sampler import QuestionSampler
from tasks.config import WorldConfig
from tasks.world import Universe
from trajectories.audit import EVENTS_FILE
from trajectories.events import EventKind, EventLog
from trajectories.ledger import Ledger
from trajectories.schema import WeightVersion

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
SMALL = (
    "rollout.groups_per_step=2", "rollout.group_size=2", "rollout.max_staleness=2", "world.training_worlds=1",
    "tracking.wandb=disabled", "tracking.progress=false",
)  # fmt: skip


@cache
def universe() -> Universe:
    return Universe.build(WorldConfig(training_worlds=1))


def configuration(folder: Path, *overrides: str) -> RunConfig:
    return load(DEMO, [*SMALL, f"run.folder={folder}", "run.name=parent", *overrides])


def write_checkpoint(folder: Path, ranks: int = 1, content: bytes = b"weights.") -> Path:
    """As the learner's ranks leave it, with one tensor of bytes each."""
    folder.mkdir(parents=True)
    (folder / STATE).write_text(json.dumps({"ranks": ranks}))
    for path in rank_files(folder, ranks):
        write_checked(path, {}, {"x": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}, [content])
    return folder


class Life:
    """The driver's own state, as a run has it; `step` makes one learner step of the next groups."""

    def __init__(self, config: RunConfig, generation: int = 1) -> None:
        self.config, self.generation = config, generation
        self.ledger, self.progress = Ledger(config.ledger_rules()), Progress()
        self.sampler, self.controller = QuestionSampler(universe(), config.run.seed), Controller(config.curriculum)
        self.log = EventLog(config.run.folder / EVENTS_FILE)
        self.log.append(EventKind.RUN_STARTED, run_id=config.run.name, generation=1, max_staleness=config.rollout.max_staleness)
        self.records: list[CheckpointRecord] = []

    @classmethod
    def resumed(cls, config: RunConfig, manifest: Manifest) -> Life:
        """The next process's state, as `Course` restores it; nothing is written down."""
        life = cls.__new__(cls)
        life.config, life.generation = config, manifest.generation + 1
        life.ledger, life.progress = Ledger(config.ledger_rules()), Progress.restored(manifest.progress)
        life.sampler, life.controller = QuestionSampler(universe(), config.run.seed), Controller(config.curriculum)
        life.ledger.restore(manifest.ledger)
        life.sampler.restore(manifest.sampler)
        life.controller.restore(manifest.controller)
        life.records = list(manifest.checkpoints)
        return life

    def go_on(self) -> None:
        """One step of the curriculum and of the ledger, as far as no engine is asked."""
        if not self.controller.finished:
            self.controller.observe(self.progress.step + 1, 0.5, {"reward/mean": 0.5})
        for _ in range(min(2, self.ledger.capacity())):
            group_id = self.progress.new_group_id()
            question = self.sampler.next(
                self.config.curriculum.phases, self.controller.phase_index, self.controller.steps_in_phase
            )
            self.ledger.admit(group_id, question.id, self.controller.phase.name, now=0.0)
            self.roll_out(group_id)
        state = [part.snapshot() for part in (self.ledger, self.sampler, self.controller)]
        json.dumps([*state, self.progress.snapshot({})], allow_nan=False)

    def admit(self) -> str:
        group_id = self.progress.new_group_id()
        question = self.sampler.next(self.config.curriculum.phases, self.controller.phase_index, self.controller.steps_in_phase)
        self.ledger.admit(group_id, question.id, self.controller.phase.name, now=0.0)
        self.log.append(EventKind.ADMITTED, group_id=group_id, question_id=question.id, phase=self.controller.phase.name)
        return group_id

    def admit_quietly(self) -> str:
        """Without an event, for what looks at rows alone."""
        group_id = self.progress.new_group_id()
        self.ledger.admit(group_id, f"q-{group_id}", "joint", now=0.0)
        return group_id

    def roll_out(self, group_id: str) -> None:
        version = WeightVersion(self.generation, self.progress.step)
        attempt = self.ledger.start(group_id, "engine-0.0", version)
        self.ledger.finish(group_id, attempt, version, 0.0)

    def step(self) -> None:
        while len(self.ledger.open_ids()) < self.config.rollout.groups_per_step:
            self.roll_out(self.admit())
        batch = self.ledger.take(WeightVersion(self.generation, self.progress.step))
        assert batch is not None
        step = self.progress.step + 1
        self.ledger.trained(batch, step)
        for ending in self.ledger.drain_endings():
            self.log.append(EventKind.TRAINED, group_id=ending.group_id, engine_id="engine-0.0", step=step, episodes=0)
        self.progress.stepped(step, model_tokens=100, seconds=1.0)
        self.controller.observe(step, 0.5)
        self.ledger.retire(step)

    def checkpoint(self, ranks: int = 1) -> Manifest:
        """Written and sealed, and none is removed."""
        folder, step = self.config.run.folder, self.progress.step
        name = f"checkpoints/step-{step:06d}-generation-{self.generation}"
        write_checkpoint(folder / name, ranks, content=step.to_bytes(8, "little"))
        phase = self.controller.phase.name
        self.records.append(CheckpointRecord(folder=name, step=step, phase=phase, phase_index=0, score=None, probed_at=None))
        self.log.append(EventKind.CHECKPOINT, step=step, folder=name)
        manifest = Manifest(
            run_id=self.config.run.name, step=step, generation=self.generation, checkpoints=list(self.records),
            config_hash=self.config.hash(), index_hash="index", tracker_id="tracker", events=self.log.position,
            ledger=self.ledger.snapshot(), sampler=self.sampler.snapshot(), controller=self.controller.snapshot(),
            progress=self.progress.snapshot({}),
        )  # fmt: skip
        write_manifest(folder / name, manifest)
        write_manifest(folder, manifest)
        write_json(folder / CONFIG, self.config.model_dump(mode="json"))
        read = open_manifest(folder)
        assert read is not None
        return read


def trained_for(folder: Path, steps: int, *overrides: str, left_open: int = 0) -> tuple[RunConfig, Manifest]:
    """A run that made so many steps and a checkpoint after each; the last state has finished groups that nobody trained."""
    config = configuration(folder, *overrides)
    life = Life(config)
    for step in range(1, steps + 1):
        life.step()
        if step == steps:
            for _ in range(left_open):
                life.roll_out(life.admit())
        manifest = life.checkpoint()
    life.log.close()
    return config, manifest


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value))
