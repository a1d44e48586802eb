"""Which engine gets a group, and which one goes first when there are too many: pure functions over what the pool knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.health import EngineState

# So many groups' tokens may an engine have more in flight than the least busy one and still get a question whose prompt it has
# in its cache: a prompt is less work than a response, so the cache is worth waiting for little.
AFFINITY_GROUPS = 1.0

# Weight of a finished group in the running mean of tokens per episode: responses get longer or shorter over tens of groups.
_NEWEST = 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine with room."""

    tokens: float  # in flight, estimated
    cached: bool  # it served the question under its current weights


def choose(candidates: Sequence[Candidate], group_tokens: float) -> int:
    """The position of the engine that gets a group: the least busy one, or one nearly so that has the prompt in its cache.

    Example:
        >>> choose([Candidate(900, False), Candidate(1500, True)], group_tokens=800)
        1
        >>> choose([Candidate(900, False), Candidate(2500, True)], group_tokens=800)
        0
    """
    least = min(candidate.tokens for candidate in candidates)
    bound = least + AFFINITY_GROUPS * group_tokens
    return min(
        range(len(candidates)),
        key=lambda i: (not (candidates[i].cached and candidates[i].tokens <= bound), candidates[i].tokens),
    )


@dataclass(slots=True)
class TokenEstimate:
    """Tokens that an episode takes, prompt and response: a running mean over finished groups.

    Example:
        >>> estimate = TokenEstimate()
        >>> estimate.observe(tokens=8000, episodes=8)
        >>> estimate.of(episodes=4)
        4000.0
    """

    per_episode: float = 0.0

    def observe(self, tokens: int, episodes: int) -> None:
        if not episodes:
            return
        newest = tokens / episodes
        self.per_episode = newest if not self.per_episode else (1 - _NEWEST) * self.per_episode + _NEWEST * newest

    def of(self, episodes: int) -> float:
        """Before anything was measured every episode counts alike."""
        return episodes * (self.per_episode or 1.0)


# Who has the least to lose comes first.
_LEAVING = (EngineState.JOINING, EngineState.STALE, EngineState.SUSPECT, EngineState.HEALTHY)


@dataclass(frozen=True, slots=True)
class Employed:
    """An engine that may be asked to go."""

    slot: int
    state: EngineState
    tokens: float


def first_to_go(engines: Sequence[Employed], count: int) -> list[int]:
    """Slots in the order in which they go: what does not work yet, then the least loaded, then the youngest place.

    Example:
        >>> first_to_go([Employed(0, EngineState.HEALTHY, 10), Employed(1, EngineState.HEALTHY, 90),
        ...              Employed(2, EngineState.JOINING, 0)], 2)
        [2, 0]
    """
    order = sorted(engines, key=lambda engine: (_LEAVING.index(engine.state), engine.tokens, -engine.slot))
    return [engine.slot for engine in order[: max(0, count)]]
