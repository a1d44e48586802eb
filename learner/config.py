"""Settings of the learner."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LearnerConfig(BaseModel):
    """The loss, the optimiser, and how work is spread over workers."""

    model_config = ConfigDict(extra="forbid")

    algorithm: Literal["grpo", "dapo"] = "grpo"
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpu_threads: int = Field(default=2, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    minibatches: int = Field(default=2, ge=1, description="optimiser steps per batch of groups")
    microbatch_tokens: int = Field(default=16_384, ge=64, description="tokens of one packed forward pass")
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    importance_cap: float = Field(default=2.0, ge=1, description="truncated importance sampling, learner over engine")
    advantage_epsilon: float = Field(default=1e-6, gt=0)
    zero_advantage: Literal["keep", "drop"] = Field(default="drop", description="groups whose rewards are all equal")
    kl_coefficient: float = Field(default=0.0, ge=0)
    entropy_coefficient: float = 0.0
    gradient_clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = 0.9
    beta2: float = 0.95
    max_mismatch: float = Field(default=0.01, gt=0, description="mean |Δ log-probability| above which the run stops")
    step_timeout_s: float = Field(default=600, gt=0)
