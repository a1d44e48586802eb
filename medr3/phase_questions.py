"""What the questions of a phase are like: of which kind and specialty, and how long to think about them. For training and held-out ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from curriculum.config import PhaseConfig
from curriculum.mixing import Turns
from tasks.questions import LengthInstruction, Question
from tasks.world import HeldOutQuestions


class Aspect(NamedTuple):
    """An answer kind and a specialty, each empty where the phase leaves it open."""

    kind: str
    specialty: str

    def fits(self, question: Question) -> bool:
        return self.kind in ("", question.kind.value) and self.specialty in ("", question.specialty)


def next_aspect(turns: Turns, phase: PhaseConfig, source: str, offers: frozenset[tuple[str, str]]) -> Aspect:
    """The kind and the specialty whose turn it is among those that the source offers."""
    kind = specialty = ""
    if phase.kinds:
        offered = [kind for kind, of in offers if not phase.specialties or phase.specialties.get(of, 0) > 0]
        kind = turns.next(f"{phase.name}: kinds of {source}", _only(phase.kinds, offered))
    if phase.specialties:
        offered = [of for its_kind, of in offers if kind in ("", its_kind)]
        specialty = turns.next(f"{phase.name}: specialties of {source} {kind}".rstrip(), _only(phase.specialties, offered))
    return Aspect(kind, specialty)


def with_length(turns: Turns, phase: PhaseConfig, question: Question, step_in_phase: int) -> Question:
    """The question, and for how long to think about it, where the phase says so."""
    schedule = phase.length
    if schedule is None:
        return question
    mode = turns.next(f"{phase.name}: lengths", {str(mode): weight for mode, weight in schedule.modes.items()})
    if mode == "free":
        return question
    return question.thinking_for(LengthInstruction(mode=mode, tokens=schedule.at(step_in_phase)))


def held_out_questions(world: HeldOutQuestions, phase: PhaseConfig, count: int) -> list[Question]:
    """About `count` different questions of a world, mixed as the phase mixes its own; lengths are those of its last steps.

    Example:
        >>> from tasks.config import WorldConfig
        >>> from tasks.world import World
        >>> mixed = {"mixture": {"world/joint": 1}, "kinds": {"number": 3, "text": 1}}
        >>> phase = PhaseConfig(name="p", reward="r", learning_rate=1e-4, **mixed)
        >>> found = held_out_questions(World("test", WorldConfig(), held_out=True), phase, 8)
        >>> Counter(question.kind.value for question in found) == {"number": 6, "text": 2}
        True
    """
    turns, total = Turns(), sum(phase.mixture.values())
    found: list[Question] = []
    for source, weight in phase.mixture.items():
        aspects = Counter(next_aspect(turns, phase, source, world.offers(source)) for _ in range(round(count * weight / total)))
        for aspect, share in aspects.items():
            found += world.questions(source, share, aspect.fits)
    return [with_length(turns, phase, question, phase.length.steps if phase.length else 0) for question in found]


def _only(weights: Mapping[Any, float], names: Iterable[str]) -> dict[str, float]:
    known = set(names)
    return {str(name): weight for name, weight in weights.items() if name in known}
