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
    """Roll out `n` episodes of one question. `temperature` 0 is greedy.

    `temperatures` is a ladder: episode i samples at `temperatures[i % len]`; where it is empty, all sample at `temperature`.
    """

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
    temperatures: tuple[float, ...] = ()


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
    kv_use: float = 0.0  # the fullest that the engine's memory was since a group ended there before, 0 to 1
    preemptions: int = 0  # of the engine since it started: requests that had to give up their memory to others
    search_ms: list[float] = field(default_factory=list)  # latency of every search of the retrieval service
    searches_cached: int = 0
    searches_degraded: int = 0
    searches_empty: int = 0


@dataclass(frozen=True, slots=True)
class Examined:
    """One episode of an evaluation, judged by rule. Every figure of an evaluation is made of these records."""

    question_id: str
    sample: int  # which of the question's episodes, from 0
    answer: str
    correct: bool
    exact: bool  # the words of the gold answer or of an alias, and no others
    f1: float  # of the answer's words, 0 to 1
    finish: str
    searches: int
    retrieved: tuple[str, ...]  # ids of the documents that its searches brought
    cited: tuple[str, ...]  # those of them that its thinking restates
    retrieved_levels: tuple[int, ...]  # where known
    cited_levels: tuple[int, ...]
    model_tokens: int
    document_tokens: int
    confidence: float | None  # mean log-probability of the answer's tokens; None without an answer, or where nobody told it
    version: str  # of the newest weights that sampled it
    seconds: float  # of sampling and searching


class GroupVoided(Exception):
    """The group ended without usable episodes (retrieval failed, engine lost, lease over); the reason is its text.

    `cause` is one word of `actors.failures.CAUSES`, for those who count.
    """

    cause = "other"

    def __init__(self, reason: str = "", cause: str = "") -> None:
        super().__init__(reason)
        self.cause = cause or type(self).cause
