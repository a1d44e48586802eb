"""What the driver orders from the learner's workers, and what they answer. Plain data: no torch, no vllm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from learner.config import LearnerConfig
from trajectories.publication import Publication
from trajectories.schema import WeightVersion

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker is started with."""

    config: LearnerConfig
    run_id: str
    model_dir: str
    spell_canary: Callable[[], list[int]]
    exchange: Any  # handle of the Exchange actor


@dataclass(frozen=True, slots=True)
class Start:
    """Load the checkpoint, if any, and publish what is loaded as `version`. The first order that workers get, and a rollback's."""

    version: WeightVersion
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """Train on these groups, then publish the result as `version`."""

    tables: list[ObjectRef[pa.Table]]
    step: int
    version: WeightVersion
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Copy the training state and go on; every rank writes its shards meanwhile, and tells the exchange when it is through."""

    folder: str


@dataclass(frozen=True, slots=True)
class NewPhase:
    """What a new phase's rules ask for: moments forgotten, because its loss surface is another; the reference set to the policy."""

    reset_optimizer: bool
    refresh_reference: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the loop; `TorchTrainer.fit()` returns."""


Order = Start | Step | Checkpoint | NewPhase | Stop


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step measured, and the weights that it made."""

    metrics: dict[str, float]
    publication: Publication


Answer = StepResult | Publication | None


class LearnerDied(Exception):
    """The learner's workers ended unasked or did not answer in time; the text says why. A run resumes from its manifest."""
