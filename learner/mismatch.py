"""How far the engine's log-probabilities are from the learner's, and how old the tokens are. Pure; before any optimiser step.

Two things that look alike are kept apart. *Mismatch* is a fault of numerics or of weight delivery, measured only on tokens that
the learner's current version sampled at the current temperature; *drift* is the policy having moved on since older tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.batch import EpisodeBatch
from learner.losses import MAX_LOG_RATIO
from trajectories.schema import WeightVersion


class EngineMismatch(Exception):
    """Engine and learner disagree about tokens of the same weights: training on them would be training on noise."""


def measure_mismatch(
    batch: EpisodeBatch,
    rows: NDArray[np.int64],
    old_t: NDArray[np.float32],
    current: WeightVersion,
    temperature: float,
    cap: float,
) -> dict[str, float]:
    """Metrics over the trained tokens of `rows`; `old_t` holds the learner's log-probabilities of these tokens."""
    in_rows_e = np.zeros(len(batch.reward_e), bool)
    in_rows_e[rows] = True
    trained_t = batch.loss_mask_t & batch.per_token(in_rows_e)
    same_temperature_t = batch.per_token(np.isclose(batch.temperature_e, temperature))
    current_t = batch.sampled_by(current) & same_temperature_t & trained_t
    older_t = trained_t & ~current_t
    delta_t = (old_t - batch.behaviour_t).astype(np.float64)
    difference = np.abs(delta_t[current_t])
    log_weight = np.clip(delta_t[trained_t], -MAX_LOG_RATIO, MAX_LOG_RATIO)
    weight = np.exp(log_weight)
    # Counted in publish numbers, which go on counting when a restart begins a new generation.
    age = (current.number - batch.number_t[trained_t]).clip(min=0)
    # Where nothing was sampled under the learner's own version there is no mismatch to tell, and a zero would be a lie.
    measured = {"mismatch_mean": float(difference.mean()), "mismatch_max": float(difference.max())} if difference.size else {}
    return {
        "mismatch_tokens": float(current_t.sum()),
        **measured,
        "drift_mean": float(np.abs(delta_t[older_t]).mean()) if older_t.any() else 0.0,
        "kl_engine_learner": float((weight - 1 - log_weight).mean()),  # k3: never negative, unbiased under the engine's samples
        "importance_mean": float(weight.mean()),
        "importance_capped": float((weight > cap).mean()),
        "effective_samples": float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())),  # 1 where all weights are equal
        "age_mean": float(age.mean()),
        "age_max": float(age.max()),
    }


def refuse_mismatch(metrics: dict[str, float], limit: float) -> None:
    """Ends the run above the limit: one line that says what, how much, and where to look."""
    if metrics.get("mismatch_mean", 0.0) > limit:
        raise EngineMismatch(
            f"engine and learner differ by {metrics['mismatch_mean']:.4g} per token (max {metrics['mismatch_max']:.4g}) over "
            f"{metrics['mismatch_tokens']:.0f} tokens of the learner's own version, above learner.max_mismatch = {limit}: "
            "check that both use one dtype and temperature, and that the engines' canaries agree"
        )
