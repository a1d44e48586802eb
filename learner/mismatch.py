"""How far the engine's log-probabilities are from the learner's, and how old the tokens are. Pure; before any optimiser step.

Two things that look alike are kept apart. *Mismatch* is a fault of numerics or of weight delivery, measured only on tokens that
the learner's current version sampled; *drift* is the policy having moved on since older tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.batch import EpisodeBatch
from learner.config import AlgorithmConfig
from learner.losses import MAX_LOG_RATIO
from trajectories.schema import WeightVersion


class EngineMismatch(Exception):
    """Engine and learner disagree about tokens of the same weights: training on them would be training on noise."""


def measure_mismatch(
    batch: EpisodeBatch, learner_t: NDArray[np.float32], current: WeightVersion, cap: float
) -> dict[str, float]:
    """Metrics over the trained tokens; `learner_t` holds the learner's log-probabilities, at the temperature of each row."""
    trained_t = batch.loss_mask_t
    if not trained_t.any():
        return {"mismatch_tokens": 0.0}
    current_t = batch.sampled_by(current) & trained_t
    older_t = trained_t & ~current_t
    delta_t = (learner_t - batch.behaviour_t).astype(np.float64)
    log_weight = np.clip(delta_t[trained_t], -MAX_LOG_RATIO, MAX_LOG_RATIO)
    weight = np.exp(log_weight)
    # Counted in publish numbers, which go on counting when a restart begins a new generation.
    age = (current.number - batch.number_t[trained_t]).clip(min=0)
    return {
        "mismatch_tokens": float(current_t.sum()),
        **_differences(np.abs(delta_t[current_t])),
        "drift_mean": float(np.abs(delta_t[older_t]).mean()) if older_t.any() else 0.0,
        "kl_engine_learner": float((weight - 1 - log_weight).mean()),  # k3: never negative, unbiased under the engine's samples
        "importance_mean": float(weight.mean()),
        "importance_capped": float((weight > cap).mean()),
        "effective_samples": float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())),  # 1 where all weights are equal
        "age_mean": float(age.mean()),
        "age_max": float(age.max()),
        **{
            f"tokens_of_age_{versions}": float(count)
            for versions, count in zip(*np.unique(age, return_counts=True), strict=True)
        },
    }


def _differences(difference_n: NDArray[np.float64]) -> dict[str, float]:
    """Nothing where the learner's own version sampled nothing: a zero would be a lie."""
    if not difference_n.size:
        return {}
    return {
        "mismatch_mean": float(difference_n.mean()),
        "mismatch_p99": float(np.quantile(difference_n, 0.99)),
        "mismatch_max": float(difference_n.max()),
    }


def refuse_mismatch(metrics: dict[str, float], config: AlgorithmConfig) -> dict[str, float]:
    """A flag where the run should say so, and above the limit its end: one line that says what, how much, and where to look."""
    mean = metrics.get("mismatch_mean", 0.0)
    if not mean <= config.max_mismatch:  # so that NaN does not pass
        raise EngineMismatch(
            f"engine and learner differ by {mean:.4g} per token (max {metrics['mismatch_max']:.4g}) over"
            f" {metrics['mismatch_tokens']:.0f} tokens of the learner's own version, above learner.max_mismatch ="
            f" {config.max_mismatch}: check that both use one dtype and temperature, and that the engines' canaries agree"
        )
    return {"mismatch_warned": float(mean > config.mismatch_warn)}
