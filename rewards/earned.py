"""What a component gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Earned:
    """A component's value, and where it is known, which turn earned how much of it: the turns' shares add up to the value."""

    value: float
    turns: Mapping[int, float] = field(default_factory=dict)
