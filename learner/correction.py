"""Engines sample from a policy that is not quite the learner's: what a token still counts for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learner.algorithms import Correction
from learner.config import AlgorithmConfig
from learner.losses import MAX_LOG_RATIO, episode_means, episode_sums, log_ratio


class Corrected(NamedTuple):
    """One weight per token, without gradient, and how much was masked."""

    weights_n: Tensor
    masked_tokens: Tensor  # those of masked episodes included
    masked_episodes: Tensor


def correct(
    kind: Correction, old_n: Tensor, behaviour_n: Tensor, episode_n: Tensor, episodes: int, config: AlgorithmConfig
) -> Corrected:
    """Truncated importance weights of the learner's policy (old) over the engine's (behaviour), outliers masked."""
    log_n = log_ratio(old_n, behaviour_n).detach()
    weights_n = truncated_importance(kind, log_n, episode_n, episodes, config.importance_cap)
    kept_n = inside(log_n, config.mask_low, config.mask_high)
    kept_e = inside(episode_means(log_n, episode_n, episodes), config.mask_episode_low, config.mask_episode_high)
    kept_n = kept_n & kept_e[episode_n]
    return Corrected(weights_n * kept_n, (~kept_n).sum(), (~kept_e).sum())


def truncated_importance(kind: Correction, log_n: Tensor, episode_n: Tensor, episodes: int, cap: float) -> Tensor:
    """token: w = min(ρ_t, cap);  sequence: w = min(Π_t ρ_t, cap), one for all tokens of an episode (arXiv 1802.01561 has min).

    The product, not its root: it alone is the episode's importance weight. The root says how far an episode is off whatever
    its length, which is what masking asks. Over thousands of tokens the product is noise, so token is the default.
    """
    match kind:
        case "none":
            return torch.ones_like(log_n)
        case "token":
            return log_n.exp().clamp(max=cap)
        case "sequence":
            product_e = episode_sums(log_n, episode_n, episodes).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
            return product_e.clamp(max=cap)[episode_n]


def inside(log_ratios: Tensor, low: float | None, high: float | None) -> Tensor:
    """Which ratios lie within [low, high]; None is no bound."""
    ratios = log_ratios.exp()
    return (ratios >= (low or 0.0)) & (ratios <= (high or torch.inf))
