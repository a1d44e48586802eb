"""Which question comes next: a phase, a source, a kind and a specialty take turns, then a question of them is drawn."""

from __future__ import annotations

from collections import Counter
from typing import Any

from curriculum.config import PhaseConfig
from curriculum.difficulty import QuestionPool
from curriculum.mixing import Turns
from medr3.phase_questions import Aspect, next_aspect, with_length
from tasks.questions import Question, without_length
from tasks.world import Universe

MOST_SKIPPED = 10_000  # a kind or specialty that so many questions in a row do not have is not there


class QuestionSampler:
    """The run's data cursor: what it draws is a function of the seed, of the draws before and of what was observed.

    ::

        phase or an earlier one ─▶ source ─▶ answer kind ─▶ specialty ─▶ the next unasked question ─▶ length asked for
         (replay)                (mixture)    (kinds)     (specialties)   or one of a pool, by learnability

    Each arrow left of the question is a wheel of `curriculum.mixing.Turns`, so shares are kept without chance.

    Example:
        >>> from tasks.config import WorldConfig
        >>> phase = PhaseConfig(name="one", mixture={"world/joint": 1.0}, reward="r", learning_rate=1e-4, kinds={"number": 1})
        >>> sampler = QuestionSampler(Universe.build(WorldConfig(training_worlds=1)), seed=0)
        >>> question = sampler.next([phase], 0)
        >>> question.source, question.kind.value
        ('world/joint', 'number')
    """

    def __init__(self, universe: Universe, seed: int) -> None:
        self._universe, self._seed = universe, seed
        self._turns = Turns()
        self._cursors: dict[str, int] = {}  # per source: the first question that was never asked
        self._pools: dict[str, QuestionPool] = {}  # by phase and stream, where a phase asks by learnability

    def next(self, phases: list[PhaseConfig], index: int, step_in_phase: int = 0) -> Question:
        """The next question while phase `index` is on and has made so many steps."""
        on = phases[index]
        phase = on if index == 0 else self._or_an_earlier(phases, index)
        source = self._turns.next(f"{phase.name}: sources", phase.mixture)
        aspect = next_aspect(self._turns, phase, source, self._universe.offers(source))
        if phase.sampling.order == "uniform":
            question = self._fresh(source, aspect)
        else:
            pool = self._pool(phase, f"{source}|{aspect.kind}|{aspect.specialty}")
            question = self._universe.question(pool.next(lambda: self._fresh(source, aspect).id))
        made = step_in_phase if phase is on or phase.length is None else phase.length.steps
        return with_length(self._turns, phase, question, made)

    def observe(self, question_id: str, successes: int, n: int) -> None:
        """A group finished: `successes` of its `n` episodes are right. Learnability is judged by it."""
        name, _ = without_length(question_id)
        for pool in self._pools.values():
            if pool.knows(name):
                pool.observe(name, successes, n)

    def bands(self, phase: str) -> dict[str, int]:
        """How many of the questions in play in a phase are how hard; nothing where it asks uniformly."""
        count = Counter[str]()
        for name, pool in self._pools.items():
            if name.startswith(f"{phase}|"):
                count.update(pool.bands())
        return dict(count)

    def snapshot(self) -> dict[str, Any]:
        """JSON for the manifest."""
        pools = {name: pool.snapshot() for name, pool in self._pools.items()}
        return {"turns": self._turns.snapshot(), "cursors": dict(self._cursors), "pools": pools}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot, exactly where phases and seed are the same."""
        self._turns.restore(snapshot["turns"])
        self._cursors = dict(snapshot["cursors"])
        self._pools = {name: QuestionPool.restored(pool, f"{self._seed}/{name}") for name, pool in snapshot["pools"].items()}

    def _or_an_earlier(self, phases: list[PhaseConfig], index: int) -> PhaseConfig:
        replay = phases[index].replay
        shares = {phase.name: replay / index for phase in phases[:index]} | {phases[index].name: 1 - replay}
        chosen = self._turns.next(f"{phases[index].name}: replay", shares)
        return next(phase for phase in phases if phase.name == chosen)

    def _fresh(self, source: str, aspect: Aspect) -> Question:
        """The next question of a source that was never asked and fits; those in between are passed over."""
        cursor = self._cursors.get(source, 0)
        for index in range(cursor, cursor + MOST_SKIPPED):
            question = self._universe.training_question(source, index)
            if aspect.fits(question):
                self._cursors[source] = index + 1
                return question
        raise ValueError(f"{source}: {MOST_SKIPPED:,} questions in a row are not of {' '.join(filter(None, aspect))}")

    def _pool(self, phase: PhaseConfig, stream: str) -> QuestionPool:
        name = f"{phase.name}|{stream}"
        if name not in self._pools:
            self._pools[name] = QuestionPool(phase.sampling, f"{self._seed}/{name}")
        return self._pools[name]
