"""A reward recipe: which components, with which weights."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class RewardTerm(BaseModel):
    """One named component, its weight in the total, and the arguments of its function."""

    model_config = ConfigDict(extra="forbid")

    name: str
    weight: float = Field(default=1.0, allow_inf_nan=False)
    arguments: dict[str, Any] = Field(default_factory=dict)


class RewardRecipe(BaseModel):
    """The components that make up the reward of a phase."""

    model_config = ConfigDict(extra="forbid")

    terms: list[RewardTerm] = Field(min_length=1)
