"""Med-U1's control of length as a change to data: some questions ask to think for exactly, or for at most, so many tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.questions import LengthInstruction, Question


class LengthMixture(BaseModel):
    """Shares of questions that ask for an exact length, for a bound, and for none; lengths are drawn evenly from a range.

    Example:
        >>> mixture = LengthMixture(exact=1, at_most=1, free=0, shortest=100, longest=200)
        >>> asked = Question(id="q", text="?", kind="text", gold="x")
        >>> [each.id for each in mixture.apply([asked], seed=1)] == [each.id for each in mixture.apply([asked], seed=1)]
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    at_most: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    free: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    shortest: int = Field(default=100, gt=0)
    longest: int = Field(default=4000, gt=0)

    @model_validator(mode="after")
    def _something_can_be_drawn(self) -> LengthMixture:
        if self.exact + self.at_most + self.free <= 0:
            raise ValueError("no share is above 0")
        if self.shortest > self.longest:
            raise ValueError(f"the shortest length {self.shortest} is above the longest, {self.longest}")
        return self

    def apply(self, questions: Iterable[Question], seed: int) -> Iterator[Question]:
        """Every question once, with what its id and the seed draw for it, in whatever order questions come."""
        for question in questions:
            rng = random.Random(f"{seed}/{question.id}")
            (mode,) = rng.choices(("exact", "at_most", "free"), (self.exact, self.at_most, self.free))
            tokens = rng.randint(self.shortest, self.longest)
            yield question if mode == "free" else question.thinking_for(LengthInstruction(mode=mode, tokens=tokens))
