"""Settings of what a run tells the world."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrackingConfig(BaseModel):
    """Where metrics go beside metrics.jsonl, which is always written."""

    model_config = ConfigDict(extra="forbid")

    wandb: Literal["auto", "offline", "online", "disabled"] = Field(
        default="auto", description="auto: online if WANDB_API_KEY is set, else offline inside the run folder"
    )
    tensorboard: bool = Field(default=False, description="write RUN/tensorboard as well")
    prometheus: bool = Field(default=True, description="tell Ray's metrics agent, which Prometheus reads")
    project: str = Field(default="medr3", min_length=1)
    progress: bool = Field(default=True, description="print one line per learner step")
