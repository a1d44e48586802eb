"""Settings of the learner."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learner.algorithms import (
    Advantage,
    Aggregation,
    Algorithm,
    Correction,
    KlEstimator,
    KlPlace,
    Recipe,
    Surrogate,
    resolve,
)

# Published bounds are around 4e-4; from here on none of an episode's mean ratios is ever clipped.
MAX_SEQUENCE_CLIP = 0.05


class LoraSettings(BaseModel):
    """Low-rank adapters by peft instead of all weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1, description="adapters are scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


class CriticSettings(BaseModel):
    """The value model of PPO: the policy's backbone with one output, trained beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=9e-6, gt=0, description="R3-RAG's")
    value_clip: float | None = Field(default=0.2, gt=0, description="how far a value may move in one step; null: no bound")


class AlgorithmConfig(BaseModel):
    """What is learned from a batch. What is null is as learner/algorithms.py has it for the algorithm, unless said otherwise."""

    model_config = ConfigDict(extra="forbid")

    algorithm: Algorithm = "grpo"
    advantage: Advantage | None = None
    surrogate: Surrogate | None = None
    aggregation: Aggregation | None = None
    max_loss_tokens: int | None = Field(
        default=None,
        ge=1,
        description="what aggregation 'constant' divides an episode's loss by, such as budget.max_response_tokens",
    )
    clip_low: float | None = Field(default=None, gt=0, le=1, description="ratios are bounded by 1 − clip_low from below")
    clip_high: float | None = Field(default=None, gt=0, description="and by 1 + clip_high from above")
    dual_clip: float | None = Field(
        default=3.0, gt=1, description="bound of surrogate 'clipped' where the advantage is negative; null: none"
    )
    advantage_epsilon: float = Field(default=1e-6, gt=0)
    zero_advantage: Literal["keep", "drop"] = Field(default="drop", description="groups whose rewards are all equal")
    whiten: bool | None = Field(default=None, description="advantages of all trained tokens get mean 0 and deviation 1")
    turn_discount: float = Field(
        default=1.0, ge=0, le=1, description="of later turns' process rewards in advantage 'turn'; 0: a turn earns only its own"
    )
    gae_lambda: float = Field(default=1.0, ge=0, le=1, description="1 as R3-RAG has it: no bias from a critic that is young")
    gae_gamma: float = Field(default=1.0, ge=0, le=1)
    horizon: Literal["episode", "turn"] = Field(
        default="episode", description="turn: GAE takes every turn as a sample of its own"
    )
    kl_coefficient: float = Field(default=0.0, ge=0)
    kl_estimator: KlEstimator | None = Field(default=None, description="null: k3 in the loss, k1 in the reward")
    kl_in: KlPlace | None = None
    entropy_coefficient: float = 0.0
    correction: Correction | None = Field(
        default=None, description="importance weights of the learner's policy over the engine's"
    )
    importance_cap: float = Field(default=2.0, ge=1, description="no such weight is larger")
    mask_low: float | None = Field(default=None, gt=0, lt=1, description="tokens of a smaller ratio get weight 0; null: none")
    mask_high: float | None = Field(default=None, gt=1, description="tokens of a larger ratio get weight 0; null: none")
    mask_episode_low: float | None = Field(
        default=None, gt=0, lt=1, description="episodes of a smaller geometric mean ratio get weight 0; null: none"
    )
    mask_episode_high: float | None = Field(default=None, gt=1, description="likewise of a larger one; null: none")
    max_mismatch: float = Field(default=0.01, gt=0, description="mean |Δ log-probability| above which the run stops")
    mismatch_warn: float = Field(default=0.003, gt=0, description="above it the run says so: room to act before the limit")
    max_skipped: int = Field(
        default=3,
        ge=1,
        description="one step may meet a bad batch; so many in a row that were not finite is a broken run, which ends",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        recipe = resolve(self)
        for contradiction in (_of_dapo(self, recipe), _of_losses(self, recipe), _of_kl(self, recipe)):
            if contradiction:
                raise ValueError(contradiction)
        if self.mismatch_warn >= self.max_mismatch:
            raise ValueError(
                f"mismatch_warn ({self.mismatch_warn}) must lie below max_mismatch ({self.max_mismatch}), where the run ends"
            )
        return self


def _of_dapo(config: AlgorithmConfig, recipe: Recipe) -> str | None:
    if config.algorithm != "dapo":
        return None
    if recipe.clip_high <= recipe.clip_low:
        return f"dapo clips higher than lower, got {recipe.clip_low} / {recipe.clip_high}; raise clip_high"
    if config.zero_advantage != "drop":
        return "dapo drops groups whose rewards are all equal; set zero_advantage to 'drop'"
    return "dapo has no KL term; set kl_coefficient to 0 or algorithm to 'grpo'" if config.kl_coefficient > 0 else None


def _of_losses(config: AlgorithmConfig, recipe: Recipe) -> str | None:
    if recipe.surrogate == "sequence_clipped" and max(recipe.clip_low, recipe.clip_high) > MAX_SEQUENCE_CLIP:
        return (
            f"a mean ratio over an episode never reaches bounds such as {recipe.clip_low} / {recipe.clip_high}; leave clip_low and"
            f" clip_high out for gspo's own, or set them to {MAX_SEQUENCE_CLIP} at most"
        )
    if recipe.aggregation == "constant" and config.max_loss_tokens is None:
        return "aggregation 'constant' divides by max_loss_tokens; set it, for instance to budget.max_response_tokens"
    if (recipe.surrogate == "likelihood") != (recipe.advantage == "none"):
        return (
            f"surrogate {recipe.surrogate!r} does not go with advantage {recipe.advantage!r}: likelihood looks at no reward, and"
            " without advantages nothing else can be learned; set algorithm to 'sft', or neither"
        )
    return None


def _of_kl(config: AlgorithmConfig, recipe: Recipe) -> str | None:
    if config.kl_coefficient == 0:
        return None
    if recipe.kl_in == "loss" and recipe.kl_estimator == "k1":
        return "k1 in the loss has gradient 0 in the mean and holds nothing back; set kl_estimator to 'k2' or 'k3', or kl_in to 'reward'"
    if recipe.kl_in == "reward" and recipe.advantage in ("group", "turn"):
        return (
            f"kl_in 'reward' with advantage {recipe.advantage!r}: dividing by the group's deviation would blow up the penalty where"
            " rewards are alike; set kl_in to 'loss'"
        )
    if recipe.surrogate == "likelihood" and recipe.kl_in == "reward":
        return "surrogate 'likelihood' looks at no reward; set kl_in to 'loss'"
    return None


class LearnerConfig(AlgorithmConfig):
    """The algorithm, the optimiser, and how work is spread over workers."""

    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpu_threads: int = Field(
        default=1, ge=1, description="OpenMP threads; 2 gained 1.3× on two free cores and lost 5× where engines used them too"
    )
    cpus_per_worker: float = Field(default=0.1, gt=0, description="what Ray reserves; the threads are bounded by cpu_threads")
    worker_resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources that one worker takes")
    activation_checkpointing: bool = Field(default=False, description="recompute decoder layers in backward: memory for time")
    weights_folder: str = Field(
        default="/dev/shm", description="parent folder of published weights; where absent: temporary files"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSettings | None = None
    critic: CriticSettings = CriticSettings()
    compile: bool = Field(
        default=False,
        description="torch.compile of decoder layers: 0.86 of the demo's step time after 17 s of compiling; needs a C compiler",
    )
    cpu_offload: bool = Field(default=False, description="weights, gradients and moments wait in main memory; GPUs only")
    minibatches: int = Field(default=2, ge=1, description="optimiser steps per batch of groups")
    microbatch_tokens: int = Field(default=8_192, ge=64, description="tokens of one forward pass; rows have no padding")
    gradient_clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = 0.9
    beta2: float = 0.95
    start_timeout_s: float = Field(default=300, gt=0, description="until the workers run, have loaded and have published")
    step_timeout_s: float = Field(default=600, gt=0)
