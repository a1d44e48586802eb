"""The losses, one function each, per chosen token: `_n` is the number of tokens that the model itself sampled.

All are minimised. Sums become means in one place, `token_mean`, by the number of tokens of *all* workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# exp(20) is far above every clip and cap; further out exp becomes inf, and a branch not taken still makes the gradient NaN.
MAX_LOG_RATIO = 20.0


def log_ratio(logprobs_n: Tensor, old_n: Tensor) -> Tensor:
    """log(π/π_old), bounded so that its exponential stays finite."""
    return (logprobs_n - old_n).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    logprobs_n: Tensor, old_n: Tensor, advantages_n: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> Tensor:
    """PPO's clipped surrogate with DAPO's separate bounds and the dual clip of Ye et al. (arXiv 1912.09729).

    ρ = π/π_old;  L = −min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A), and where A < 0:  L = min(L, −c·A).
    """
    ratio_n = log_ratio(logprobs_n, old_n).exp()
    clipped_n = ratio_n.clamp(1 - clip_low, 1 + clip_high)
    loss_n = torch.maximum(-ratio_n * advantages_n, -clipped_n * advantages_n)
    if dual_clip is None:
        return loss_n
    return torch.where(advantages_n < 0, torch.minimum(loss_n, -dual_clip * advantages_n), loss_n)


def truncated_importance(old_n: Tensor, behaviour_n: Tensor, cap: float) -> Tensor:
    """w = min(π_old/μ, cap), without gradient: what the learner thought of a token over what the engine sampled it with."""
    return log_ratio(old_n, behaviour_n).exp().clamp(max=cap).detach()


def kl_k3(logprobs_n: Tensor, reference_n: Tensor) -> Tensor:
    """KL(π‖π_ref) by Schulman's k3: r − 1 − log r with r = π_ref/π. Never negative, unbiased under samples of π."""
    log_r_n = log_ratio(reference_n, logprobs_n)
    return log_r_n.exp() - 1 - log_r_n


def token_mean(loss_n: Tensor, total_tokens: int) -> Tensor:
    """Σ L / N with N the chosen tokens of all workers and micro-batches, so that every token weighs the same."""
    return loss_n.sum() / total_tokens


def clip_counts(
    logprobs_n: Tensor, old_n: Tensor, advantages_n: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> Tensor:
    """How many tokens have lost their gradient to the lower, the upper and the dual clip, as a vector of three."""
    ratio_n = log_ratio(logprobs_n, old_n).exp()
    below = (ratio_n < 1 - clip_low) & (advantages_n < 0)
    above = (ratio_n > 1 + clip_high) & (advantages_n > 0)
    dual = (ratio_n > (dual_clip or torch.inf)) & (advantages_n < 0)
    return torch.stack([below.sum(), above.sum(), dual.sum()])
