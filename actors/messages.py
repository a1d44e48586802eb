"""What travels between the run loop, the pool and the rollout actors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from actors.config import EpisodeBudget
from rewards.config import RewardRecipe
from tasks.questions import Question
from trajectories.schema import WeightVersion


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """Roll out `n` episodes of one question. `temperature` 0 is greedy."""

    run_id: str
    group_id: str
    attempt: int
    phase: str
    question: Question
    n: int
    temperature: float
    seed: int
    budget: EpisodeBudget
    recipe: RewardRecipe


class DroppedSample(NamedTuple):
    """An episode that left its group because it could not be scored: the judge or a reward of the user's own failed."""

    episode_id: str
    cause: str  # judge | own_reward
    reason: str


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """What the run loop needs of a finished group without opening its Arrow rows. Dropped samples are in no other field."""

    group_id: str
    attempt: int
    engine_id: str
    oldest: WeightVersion
    newest: WeightVersion
    rewards: list[float]
    correct: list[bool]
    components: dict[str, float] = field(default_factory=dict)  # mean per reward component
    finishes: dict[str, int] = field(default_factory=dict)
    model_tokens: int = 0
    document_tokens: int = 0
    prompt_tokens: int = 0
    searches: int = 0
    evidence_levels: list[int] = field(default_factory=list)  # of the documents that were cited
    generate_s: float = 0.0
    search_s: float = 0.0
    dropped_samples: list[DroppedSample] = field(default_factory=list)


class GroupVoided(Exception):
    """The group ended without usable episodes (retrieval failed, engine lost, lease over); the reason is its text."""
