"""What the parts of the run loop share. One event loop owns it all, so nothing here needs a lock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from actors.pool import RolloutPool
from curriculum.controller import Controller
from learner.client import LearnerClient
from medr3.config import RunConfig
from medr3.evaluation.background import BackgroundReports
from medr3.run.journal import FinishedGroup, Journal
from medr3.run.manifest import CheckpointRecord, Parent
from medr3.run.progress import Progress
from medr3.run.recovery import Recovery
from medr3.run.sampler import QuestionSampler
from medr3.run.watchdog import Watchdog
from tasks.world import Universe
from trajectories.ledger import Ledger
from trajectories.publication import Publication
from trajectories.schema import WeightVersion


@dataclass
class RunState:
    """One run in one process."""

    config: RunConfig
    universe: Universe
    index_hash: str
    pool: RolloutPool
    learner: LearnerClient
    journal: Journal
    ledger: Ledger
    sampler: QuestionSampler
    controller: Controller
    progress: Progress
    watchdog: Watchdog
    publication: Publication  # the weights of `version`
    version: WeightVersion  # what the learner published last, and every engine in work has acknowledged
    checkpoints: list[CheckpointRecord] = field(default_factory=list)  # those that the manifest names, oldest first
    finished: dict[str, FinishedGroup] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)  # a group finished
    slot_free: asyncio.Event = field(default_factory=asyncio.Event)  # the feed may look for a slot
    recovery: Recovery = field(default_factory=Recovery)  # groups that an earlier process rolled out
    forked_from: Parent | None = None
    reports: BackgroundReports | None = None  # None: the training engines report, between two steps
    stop: asyncio.Event = field(default_factory=asyncio.Event)  # somebody asked the run to end after this step
