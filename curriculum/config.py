"""Phases as data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curriculum.phase_parts import Boundary, Kind, LengthSchedule, Sampling, Weight
from curriculum.plan import check_plan
from curriculum.rules_config import CollapseConfig, EntryRule, ExitRule, PlateauConfig, RegressRule

# Bounds of an episode that a phase may set, each under its name in the run's `budget`.
BOUNDS = (
    "retrieval", "retrieval_mode", "max_searches", "top_k", "max_passages", "distinct_passages", "regenerations", "max_turn_tokens",
    "max_response_tokens",
)  # fmt: skip


class PhaseConfig(BaseModel):
    """One phase: what is asked, how it may be answered, what is rewarded, and when it ends."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    train: bool = Field(default=True, description="false: passed over, and its held-out questions are only reported")

    # What is asked.
    mixture: dict[str, Weight] = Field(description="task source → weight")
    kinds: dict[Kind, Weight] = Field(
        default={}, description="answer kind → weight, where a source has it; empty: as they come"
    )
    specialties: dict[str, Weight] = Field(default={}, description="likewise for specialties")
    replay: float = Field(default=0.2, ge=0, lt=1, description="share of questions from earlier phases, under their own rules")
    sampling: Sampling = Sampling()
    length: LengthSchedule | None = Field(default=None, description="null: prompts say nothing about length")

    # How it may be answered. What is null is as the run's `budget` and `retrieval` have it.
    retrieval: bool = True
    retrieval_mode: Literal["dense", "lexical", "hybrid"] | None = None
    max_searches: int | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    max_passages: int | None = Field(default=None, ge=0)
    distinct_passages: bool | None = None
    regenerations: int | None = Field(default=None, ge=0)
    max_turn_tokens: int | None = Field(default=None, ge=1)
    max_response_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(),
        description="a ladder in place of `temperature`: episode i of a group samples at the i-th, then from the start",
    )

    # What is learned.
    reward: str = Field(description="name of a reward recipe of this configuration, or a shipped one, such as med_r3/joint")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=0, ge=0, description="the last of these has the whole rate; it rises evenly")
    on_entry: Boundary = Boundary()

    # When it ends.
    min_steps: int = Field(default=6, ge=1)
    max_steps: int = Field(default=90, ge=1)
    plateau: PlateauConfig = PlateauConfig()
    exit: ExitRule = ExitRule()
    entry: EntryRule | None = None
    regress: RegressRule | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.mixture or sum(self.mixture.values()) <= 0:
            raise ValueError(f"phase {self.name!r}: the mixture must name at least one task source with a positive weight")
        if self.min_steps > self.max_steps:
            raise ValueError(f"phase {self.name!r}: min_steps {self.min_steps} is above max_steps {self.max_steps}")
        for what, weights in (("kinds", self.kinds), ("specialties", self.specialties)):
            if weights and sum(weights.values()) <= 0:
                raise ValueError(f"phase {self.name!r}: {what} has no weight above 0: give one, or leave {what} out")
        return self

    @property
    def bounds(self) -> dict[str, bool | int | str]:
        """What the phase says about an episode's bounds, by the names that `budget` has for them.

        Example:
            >>> phase = PhaseConfig(name="a", mixture={"world/joint": 1}, reward="r", learning_rate=1e-6, max_passages=10)
            >>> phase.bounds
            {'retrieval': True, 'max_passages': 10}
        """
        said = {name: getattr(self, name) for name in BOUNDS}
        return {name: value for name, value in said.items() if value is not None}


def learning_rate_at(phase: PhaseConfig, step_in_phase: int) -> float:
    """The rate of the step after `step_in_phase` steps of the phase: min(1, (step_in_phase + 1)/warmup_steps) of the phase's own.

    Example:
        >>> phase = PhaseConfig(name="a", mixture={"world/joint": 1}, reward="r", learning_rate=4.0, warmup_steps=4)
        >>> [learning_rate_at(phase, step) for step in range(5)]
        [1.0, 2.0, 3.0, 4.0, 4.0]
    """
    return phase.learning_rate * min(1.0, (step_in_phase + 1) / max(1, phase.warmup_steps))


class CurriculumConfig(BaseModel):
    """The phases, in order."""

    model_config = ConfigDict(extra="forbid")

    phases: list[PhaseConfig] = Field(min_length=1)
    collapse: CollapseConfig = CollapseConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must be unique, got {names}")
        check_plan(self.phases)
        return self
