"""What a phase is made of beside its rules: which questions it prefers, how long thinking shall be, what happens at its entry."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Kind = Literal["choice", "number", "text"]


class Sampling(BaseModel):
    """Which of a source's questions come next."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Literal["uniform", "learnability"] = Field(
        default="uniform",
        description="uniform: ever new questions, for sources without end; learnability: a pool, of which those are asked most that"
        " are sometimes answered right and sometimes not",
    )
    pool: int = Field(default=256, ge=8, description="questions in play, per source, kind and specialty")
    memory: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="what a question's earlier results still count when a new one comes: the policy has moved",
    )
    retire_after: int = Field(
        default=16, ge=1, description="attempts in a row, all right or all wrong, after which another question takes its place"
    )
    retry: float = Field(default=0.05, ge=0, le=0.5, description="share of draws that try a retired question again")


class LengthSchedule(BaseModel):
    """Med-U1's control of length: the prompt says for how many tokens to think, and the number moves over the phase.

    Example:
        >>> schedule = LengthSchedule(start=1000, end=500, steps=10)
        >>> schedule.at(0), schedule.at(5), schedule.at(10), schedule.at(90)
        (1000, 750, 500, 500)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: int = Field(gt=0, description="tokens asked for at the first step")
    end: int = Field(gt=0, description="and after `steps` steps; in between, evenly")
    steps: int = Field(ge=1)
    modes: dict[Literal["exact", "at_most", "free"], Weight] = Field(
        default={"exact": 1.0, "at_most": 1.0},
        description="shares of “for n”, of “for at most n”, and of questions without a word",
    )

    def at(self, step_in_phase: int) -> int:
        """The tokens asked for after so many steps of the phase."""
        return round(self.start + (self.end - self.start) * min(step_in_phase / self.steps, 1.0))

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.modes.get("exact", 0) + self.modes.get("at_most", 0) <= 0:
            raise ValueError("modes gives exact and at_most no weight: leave the length schedule out, or give one of them some")
        return self


class Boundary(BaseModel):
    """What happens when the phase is entered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    old_groups: Literal["train", "drop"] = Field(
        default="train", description="groups of the phase before that are still open; they keep their own rules"
    )
    optimizer: Literal["keep", "reset"] = Field(default="keep", description="AdamW's moments; reset where the loss is another")
    reference: Literal["keep", "refresh"] = Field(
        default="keep", description="the policy that a KL term holds on to; refresh: the one that enters the phase"
    )
