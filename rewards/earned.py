"""What a component gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Earned:
    """A component's value, which turn earned how much of it, and why.

    Where the turns are known, their shares add up to the value and are no further reward. `reason` is one short phrase for a
    person, such as "letter B is the gold letter"; no code reads it.
    """

    value: float
    turns: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""
