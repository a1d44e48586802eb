"""When a pool grows and shrinks."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AutoscaleConfig(BaseModel):
    """Bounds and patience of the autoscaler; the rule itself stands in `actors/autoscaler.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_engines: int = Field(default=1, ge=1)
    max_engines: int = Field(ge=1, description="what the cluster's rollout nodes can hold")
    min_fill: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of its seats that an engine must be able to fill: an emptier one hardly samples faster",
    )
    interval_s: float = Field(
        default=5, gt=0, description="how often engines and nodes are looked at; well below a spot notice"
    )
    window_s: float = Field(default=60, gt=0, description="load is measured over whole steps, and at least over this long")
    up_threshold: float = Field(
        default=0.1, ge=0, description="of the engines there are: so many more than the next half must be wanted"
    )
    down_threshold: float = Field(
        default=0.25, ge=0, description="of the engines there are: so many fewer; a node comes back slower than it goes"
    )
    up_cooldown_s: float = Field(default=30, ge=0, description="after any change, until more may be asked for")
    down_cooldown_s: float = Field(default=300, ge=0, description="after any change, until engines may be given back")
    pending_timeout_s: float = Field(
        default=900,
        gt=0,
        description="without one more engine for so long, those that are still joining are given up; GPU nodes take minutes",
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_engines > self.max_engines:
            raise ValueError(f"min_engines ({self.min_engines}) is above max_engines ({self.max_engines}): swap or equal them")
        return self
