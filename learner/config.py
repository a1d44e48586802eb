"""Settings of the learner."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LearnerConfig(BaseModel):
    """The loss, the optimiser, and how work is spread over workers."""

    model_config = ConfigDict(extra="forbid")

    algorithm: Literal["grpo", "dapo"] = "grpo"
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpu_threads: int = Field(
        default=1, ge=1, description="OpenMP threads; 2 gained 1.3× on two free cores and lost 5× where engines used them too"
    )
    cpus_per_worker: float = Field(default=0.1, gt=0, description="what Ray reserves; the threads are bounded by cpu_threads")
    activation_checkpointing: bool = Field(default=False, description="recompute decoder layers in backward: memory for time")
    weights_folder: str = Field(
        default="/dev/shm", description="parent folder of published weights; where absent: temporary files"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    minibatches: int = Field(default=2, ge=1, description="optimiser steps per batch of groups")
    microbatch_tokens: int = Field(default=8_192, ge=64, description="tokens of one forward pass, padding included")
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    dual_clip: float | None = Field(
        default=3.0, gt=1, description="bound of the loss where the advantage is negative; null: none"
    )
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
    start_timeout_s: float = Field(default=300, gt=0, description="until the workers run, have loaded and have published")
    step_timeout_s: float = Field(default=600, gt=0)

    @model_validator(mode="after")
    def _dapo_is_dapo(self) -> Self:
        if self.algorithm == "dapo":
            if self.clip_high <= self.clip_low:
                raise ValueError(
                    f"learner: dapo clips higher than lower, got {self.clip_low} / {self.clip_high}; raise clip_high"
                )
            if self.zero_advantage != "drop":
                raise ValueError("learner: dapo drops groups whose rewards are all equal; set zero_advantage to 'drop'")
            if self.kl_coefficient > 0:
                raise ValueError("learner: dapo has no KL term; set kl_coefficient to 0 or algorithm to 'grpo'")
        return self
