"""Phases as data."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PlateauConfig(BaseModel):
    """When a held-out curve counts as flat."""

    model_config = ConfigDict(extra="forbid")

    probe_every: int = Field(default=3, ge=1, description="learner steps between two held-out probes")
    patience: int = Field(default=3, ge=1, description="probes without a new best before the phase is left")
    min_improvement: float = Field(default=0.01, ge=0, description="what counts as a new best")


class PhaseConfig(BaseModel):
    """One phase: what is asked, how it may be answered, what is rewarded, and when it ends."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    mixture: dict[str, float] = Field(description="task source → weight")
    reward: str = Field(description="name of a reward recipe of this configuration")
    retrieval: bool = True
    max_searches: int = Field(default=4, ge=0)
    top_k: int = Field(default=3, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(gt=0)
    min_steps: int = Field(default=6, ge=1)
    max_steps: int = Field(default=90, ge=1)
    replay: float = Field(default=0.2, ge=0, lt=1, description="share of questions from earlier phases")
    plateau: PlateauConfig = PlateauConfig()

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.mixture or sum(self.mixture.values()) <= 0 or min(self.mixture.values()) < 0:
            raise ValueError(f"phase {self.name!r}: the mixture must name at least one task source with a positive weight")
        if self.min_steps > self.max_steps:
            raise ValueError(f"phase {self.name!r}: min_steps {self.min_steps} is above max_steps {self.max_steps}")
        return self


class CurriculumConfig(BaseModel):
    """The phases, in order."""

    model_config = ConfigDict(extra="forbid")

    phases: list[PhaseConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must be unique, got {names}")
        return self
