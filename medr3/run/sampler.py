"""Which question comes next: a phase, a source, a kind and a specialty take turns, then a question of them is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from curriculum.config import PhaseConfig
from curriculum.difficulty import QuestionPool
from curriculum.mixing import Turns
from curriculum.phase_parts import LengthSchedule
from tasks.questions import LengthInstruction, Question, without_length
from tasks.world import SOURCES, Universe

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
        kind, specialty = self._aspect(phase, source)
        if phase.sampling.order == "uniform":
            question = self._fresh(source, kind, specialty)
        else:
            pool = self._pool(phase, f"{source}|{kind}|{specialty}")
            question = self._universe.question(pool.next(lambda: self._fresh(source, kind, specialty).id))
        if phase.length is None:
            return question
        return self._with_length(question, phase.name, phase.length, step_in_phase if phase is on else phase.length.steps)

    def observe(self, question_id: str, successes: int, n: int) -> None:
        """A group finished: `successes` of its `n` episodes are right. Learnability is judged by it."""
        name, _ = without_length(question_id)
        for pool in self._pools.values():
            if pool.knows(name):
                pool.observe(name, successes, n)

    def bands(self) -> dict[str, dict[str, int]]:
        """Per pool, how many of its questions are how hard; nothing where questions are asked uniformly."""
        return {name: pool.bands() for name, pool in self._pools.items()}

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

    def _aspect(self, phase: PhaseConfig, source: str) -> tuple[str, str]:
        """The answer kind and the specialty whose turn it is, each empty where the phase leaves it open."""
        offers = SOURCES[source].offers
        kind = specialty = ""
        if phase.kinds:
            offered = [kind for kind, of in offers if not phase.specialties or phase.specialties.get(of, 0) > 0]
            kind = self._turns.next(f"{phase.name}: kinds of {source}", _only(phase.kinds, offered))
        if phase.specialties:
            offered = [of for its_kind, of in offers if kind in ("", its_kind)]
            specialty = self._turns.next(
                f"{phase.name}: specialties of {source} {kind}".rstrip(), _only(phase.specialties, offered)
            )
        return kind, specialty

    def _fresh(self, source: str, kind: str, specialty: str) -> Question:
        """The next question of a source that was never asked and has the kind and specialty; those in between are passed over."""
        cursor = self._cursors.get(source, 0)
        for index in range(cursor, cursor + MOST_SKIPPED):
            question = self._universe.training_question(source, index)
            if kind in ("", question.kind.value) and specialty in ("", question.specialty):
                self._cursors[source] = index + 1
                return question
        raise ValueError(
            f"{source}: {MOST_SKIPPED:,} questions in a row are not of {' '.join(filter(None, (kind, specialty)))}"
        )

    def _pool(self, phase: PhaseConfig, stream: str) -> QuestionPool:
        name = f"{phase.name}|{stream}"
        if name not in self._pools:
            self._pools[name] = QuestionPool(phase.sampling, f"{self._seed}/{name}")
        return self._pools[name]

    def _with_length(self, question: Question, phase: str, schedule: LengthSchedule, step: int) -> Question:
        mode = self._turns.next(f"{phase}: lengths", {str(mode): weight for mode, weight in schedule.modes.items()})
        if mode == "free":
            return question
        return question.thinking_for(LengthInstruction(mode=mode, tokens=schedule.at(step)))


def _only(weights: Mapping[Any, float], names: Iterable[str]) -> dict[str, float]:
    known = set(names)
    return {str(name): weight for name, weight in weights.items() if name in known}
