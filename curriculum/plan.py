"""Do the rules of a plan's phases fit together? What cannot work is refused before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curriculum.config import PhaseConfig

STOP = "stop"


def check_plan(phases: Sequence[PhaseConfig]) -> None:
    """Raises ValueError with the first contradiction, in one sentence.

    What passes can reach every phase: `max_steps` always ends the one before, and an entry rule refuses `attempts` times only.

    Example:
        >>> from curriculum.config import PhaseConfig
        >>> one = {"mixture": {"world/joint": 1.0}, "reward": "r", "learning_rate": 1e-4}
        >>> a = PhaseConfig(name="a", entry={"score": 0.5, "otherwise": "b"}, **one)
        >>> b = PhaseConfig(name="b", entry={"score": 0.5, "otherwise": "a"}, **one)
        >>> check_plan([a, b])
        Traceback (most recent call last):
        ValueError: phases: entry rules go in a circle: a → b → a
    """
    names = [phase.name for phase in phases]
    if STOP in names:
        raise ValueError(f"no phase may be called {STOP!r}: it is what an entry rule's `otherwise` says to end the run")
    for index, phase in enumerate(phases):
        _check_entry(phase, names)
        _check_regress(phase, names[:index])
        _check_exit(phase)
    _check_circles(phases)


def _check_entry(phase: PhaseConfig, names: list[str]) -> None:
    if phase.entry is None or phase.entry.otherwise == STOP:
        return
    if phase.entry.otherwise == phase.name:
        raise ValueError(f"phase {phase.name!r}: its entry rule leads back to itself; name another phase, or {STOP}")
    if phase.entry.otherwise not in names:
        raise ValueError(
            f"phase {phase.name!r}: entry.otherwise names {phase.entry.otherwise!r}; there are {', '.join(names)}, and {STOP}"
        )


def _check_regress(phase: PhaseConfig, earlier: list[str]) -> None:
    if phase.regress is None:
        return
    if not earlier:
        raise ValueError(f"phase {phase.name!r}: regress has no earlier phase to go back to; leave it out")
    for name in phase.regress.phases:
        if name not in earlier:
            raise ValueError(f"phase {phase.name!r}: regress names {name!r}, which is none of the earlier {', '.join(earlier)}")


def _check_exit(phase: PhaseConfig) -> None:
    rule = phase.exit
    if not rule.plateau and rule.score is None and rule.combine == "any":
        raise ValueError(f"phase {phase.name!r}: exit combines any of nothing; name a score, or leave combine out")


def _check_circles(phases: Sequence[PhaseConfig]) -> None:
    """Refused entries that lead to each other would run through the plan without a step of training."""
    onward = {phase.name: phase.entry.otherwise for phase in phases if phase.entry is not None}
    for name in onward:
        way = [name]
        while (following := onward.get(way[-1])) is not None and following != STOP:
            if following in way:
                raise ValueError(f"phases: entry rules go in a circle: {' → '.join([*way, following])}")
            way.append(following)
