"""Which question comes next: the phase's mixture of task sources, with a share of earlier phases against forgetting."""

from __future__ import annotations

import random
from typing import Any

from curriculum.config import PhaseConfig
from tasks.questions import Question
from tasks.world import Universe


class QuestionSampler:
    """The run's data cursor: the n-th draw is a function of the seed, n and the phase, so a resume repeats nothing by chance.

    Example:
        >>> from tasks.config import WorldConfig
        >>> phase = PhaseConfig(name="one", mixture={"world/joint": 1.0}, reward="r", learning_rate=1e-4)
        >>> sampler = QuestionSampler(Universe.build(WorldConfig(training_worlds=1)), seed=0)
        >>> sampler.next([phase], 0).source, sampler.snapshot()
        ('world/joint', {'drawn': 1, 'cursors': {'world/joint': 1}})
    """

    def __init__(self, universe: Universe, seed: int) -> None:
        self._universe, self._seed = universe, seed
        self._drawn = 0
        self._cursors: dict[str, int] = {}

    def next(self, phases: list[PhaseConfig], index: int) -> Question:
        """The next question while phase `index` is on."""
        rng = random.Random(f"{self._seed}/{self._drawn}")
        self._drawn += 1
        phase = phases[index]
        if index > 0 and rng.random() < phase.replay:
            phase = phases[rng.randrange(index)]
        source = rng.choices(list(phase.mixture), weights=list(phase.mixture.values()))[0]
        cursor = self._cursors.get(source, 0)
        self._cursors[source] = cursor + 1
        return self._universe.training_question(source, cursor)

    def snapshot(self) -> dict[str, Any]:
        """JSON for the manifest."""
        return {"drawn": self._drawn, "cursors": dict(self._cursors)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._drawn, self._cursors = snapshot["drawn"], dict(snapshot["cursors"])
