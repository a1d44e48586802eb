"""Which of a pool's questions teach something now: those that the policy sometimes answers right and sometimes wrong.

A group of episodes that all fail or all succeed has no advantage and teaches nothing; the expected gradient grows with p(1 − p).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Any

from curriculum.phase_parts import Sampling

# A question that nobody tried counts as if one attempt had been right and one wrong: every rate is as likely as any other.
PRIOR_RIGHT = PRIOR_WRONG = 1.0
HARD, EASY = 0.25, 0.75  # quarters: below the first a group of 8 has two right answers or fewer


class Band(StrEnum):
    """How often a question is answered right."""

    UNSEEN = "unseen"
    NEVER = "never"
    HARD = "hard"
    MIDDLE = "middle"
    EASY = "easy"
    ALWAYS = "always"


@dataclass(slots=True)
class Record:
    """What is known of one question. Earlier results fade, because the policy that they speak of is gone.

    Example:
        >>> record = Record()
        >>> record.add(successes=4, n=8, memory=0.5)
        >>> record.band.value, round(record.learnability, 3), record.streak
        ('middle', 0.227, 0)
    """

    successes: float = 0.0
    attempts: float = 0.0
    streak: int = 0  # attempts in a row that ended alike: above 0 all right, below 0 all wrong
    asked: int = 0  # the draw at which it was asked last; 0: never

    def add(self, successes: int, n: int, memory: float) -> None:
        """One more group of `n` attempts."""
        self.successes = memory * self.successes + successes
        self.attempts = memory * self.attempts + n
        if successes == n:
            self.streak = max(self.streak, 0) + n
        elif successes == 0:
            self.streak = min(self.streak, 0) - n
        else:
            self.streak = 0

    @property
    def learnability(self) -> float:
        """What p(1 − p) is expected to be: a·b / ((a + b)(a + b + 1)) for a right and b wrong attempts, the prior's among them."""
        right, wrong = PRIOR_RIGHT + self.successes, PRIOR_WRONG + self.attempts - self.successes
        return right * wrong / ((right + wrong) * (right + wrong + 1))

    @property
    def band(self) -> Band:
        if self.attempts == 0:
            return Band.UNSEEN
        rate = self.successes / self.attempts
        if rate in (0, 1):
            return Band.ALWAYS if rate else Band.NEVER
        return Band.HARD if rate < HARD else Band.EASY if rate > EASY else Band.MIDDLE


class QuestionPool:
    """A number of questions in play, drawn by learnability; the exhausted ones make room for fresh ones.

    ::

        fresh ──▶ active ──drawn by expected p(1 − p)──▶ asked: rests for half a pool of draws ──▶ active
                    ▲   └──all right or all wrong, `retire_after` times in a row──▶ retired
                    └───── a re-try that ended mixed ──────────────────────────────────┘ forgotten beyond a pool of them

    Each draw depends on the seed, its number and what was observed before it, so a restored pool goes on as if nothing had happened.

    Example:
        >>> pool = QuestionPool(Sampling(order="learnability", pool=8, retire_after=8), seed="0")
        >>> numbers = iter(range(100))
        >>> first = pool.next(lambda: f"q{next(numbers)}")
        >>> pool.observe(first, successes=0, n=8)
        >>> pool.bands()
        {'unseen': 7, 'retired': 1}
    """

    def __init__(self, config: Sampling, seed: str) -> None:
        self._config, self._seed = config, seed
        self._drawn = 0
        self._active: dict[str, Record] = {}
        self._retired: dict[str, Record] = {}  # the longest retired first

    def next(self, fresh: Callable[[], str | None]) -> str:
        """The next question; `fresh` names one that the pool never had, or nothing where its source has come to an end."""
        self._drawn += 1
        self._fill(fresh)
        if self._tries_again():
            chosen = next(iter(self._retired))
            record = self._retired[chosen] = self._retired.pop(chosen)  # the last in line
        else:
            chosen = self._draw()
            record = self._active[chosen]
        record.asked = self._drawn
        return chosen

    def observe(self, question_id: str, successes: int, n: int) -> None:
        """The results of a group. Of a question that has been forgotten meanwhile there is nothing to learn."""
        if not 0 <= successes <= n or n < 1:
            raise ValueError(f"question {question_id}: {successes} of {n} attempts cannot have been right")
        record = self._active.get(question_id) or self._retired.get(question_id)
        if record is None:
            return
        record.add(successes, n, self._config.memory)
        exhausted = abs(record.streak) >= self._config.retire_after
        if exhausted and question_id in self._active:
            self._retired[question_id] = self._active.pop(question_id)
            while len(self._retired) > self._config.pool:
                del self._retired[next(iter(self._retired))]
        elif not exhausted and question_id in self._retired:
            self._active[question_id] = self._retired.pop(question_id)

    def knows(self, question_id: str) -> bool:
        return question_id in self._active or question_id in self._retired

    def bands(self) -> dict[str, int]:
        """How many questions of the pool are in which band, and how many are retired."""
        count = Counter(record.band.value for record in self._active.values())
        found = {band.value: count[band.value] for band in Band if count[band.value]}
        return found | {"retired": len(self._retired)}

    def snapshot(self) -> dict[str, Any]:
        """JSON for the manifest. Lists, because the order decides draws."""
        return {
            "sampling": self._config.model_dump(mode="json"),
            "drawn": self._drawn,
            "active": [[name, *astuple(record)] for name, record in self._active.items()],
            "retired": [[name, *astuple(record)] for name, record in self._retired.items()],
        }

    @classmethod
    def restored(cls, snapshot: dict[str, Any], seed: str) -> QuestionPool:
        pool = cls(Sampling.model_validate(snapshot["sampling"]), seed)
        pool._drawn = snapshot["drawn"]
        pool._active = {name: Record(*values) for name, *values in snapshot["active"]}
        pool._retired = {name: Record(*values) for name, *values in snapshot["retired"]}
        return pool

    def _fill(self, fresh: Callable[[], str | None]) -> None:
        while len(self._active) < self._config.pool and (name := fresh()) is not None:
            self._active[name] = Record()

    def _tries_again(self) -> bool:
        retry = self._config.retry
        return bool(self._retired) and (not self._active or (retry > 0 and self._drawn % round(1 / retry) == 0))

    def _draw(self) -> str:
        """What was asked lately rests: its results are not in yet, and a batch shall not hold it twice."""
        if not self._active:
            raise ValueError("the source of this pool has no question at all")
        rest = len(self._active) // 2
        ready = {name: r for name, r in self._active.items() if not r.asked or self._drawn - r.asked > rest} or self._active
        weights = [record.learnability for record in ready.values()]
        return random.Random(f"{self._seed}/{self._drawn}").choices(list(ready), weights)[0]
