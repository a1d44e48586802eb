"""The losses, one function each, per chosen token: `_n` is the number of tokens that the model itself sampled.

All are minimised. None sums: learner/weighting.py says what every token weighs in the one sum over workers and micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.algorithms import KlEstimator

# exp(20) is far above every clip and cap; further out exp becomes inf, and a branch not taken still makes the gradient NaN.
MAX_LOG_RATIO = 20.0


def log_ratio(logprobs_n: Tensor, old_n: Tensor) -> Tensor:
    """log(π/π_old), bounded so that its exponential stays finite."""
    return (logprobs_n - old_n).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def episode_sums(values_n: Tensor, episode_n: Tensor, episodes: int) -> Tensor:
    """The sum over each episode's chosen tokens, 0 where it has none."""
    return values_n.new_zeros(episodes).index_add_(0, episode_n, values_n)


def episode_means(values_n: Tensor, episode_n: Tensor, episodes: int) -> Tensor:
    """The mean over each episode's chosen tokens, 0 where it has none."""
    count_e = episode_sums(torch.ones_like(values_n), episode_n, episodes)
    return episode_sums(values_n, episode_n, episodes) / count_e.clamp(min=1)


def token_ratio(logprobs_n: Tensor, old_n: Tensor) -> Tensor:
    """ρ = π/π_old of each token."""
    return log_ratio(logprobs_n, old_n).exp()


def sequence_ratio(logprobs_n: Tensor, old_n: Tensor, episode_n: Tensor, episodes: int) -> Tensor:
    """GSPO's ratio (arXiv 2507.18071), in the token form of its section 4.3, which also takes an advantage per token.

    s = exp(mean over the episode of log π/π_old);  s_t = sg[s] · π_t/sg[π_t].

    Where an episode has one advantage and one weight, value and gradient are those of s itself.
    """
    mean_e = episode_means(log_ratio(logprobs_n, old_n).detach(), episode_n, episodes)
    return (mean_e[episode_n] + logprobs_n - logprobs_n.detach()).exp()


def clipped(ratio_n: Tensor, advantages_n: Tensor, low: float, high: float, dual: float | None) -> Tensor:
    """PPO's surrogate (arXiv 1707.06347), DAPO's two bounds (2503.14476) and the dual clip of Ye et al. (1912.09729).

    L = −min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A), and where A < 0:  L = min(L, −c·A).
    """
    bounded_n = ratio_n.clamp(1 - low, 1 + high)
    loss_n = torch.maximum(-ratio_n * advantages_n, -bounded_n * advantages_n)
    if dual is None:
        return loss_n
    return torch.where(advantages_n < 0, torch.minimum(loss_n, -dual * advantages_n), loss_n)


def clipped_weight(logprobs_n: Tensor, ratio_n: Tensor, advantages_n: Tensor, low: float, high: float) -> Tensor:
    """CISPO (arXiv 2506.13585): the weight is clipped, not the update, so that every token keeps a gradient.

    L = −sg[clip(ρ, 1 − ε_low, 1 + ε_high)] · A · log π.
    """
    return -ratio_n.detach().clamp(1 - low, 1 + high) * advantages_n * logprobs_n


def reinforce(logprobs_n: Tensor, advantages_n: Tensor) -> Tensor:
    """L = −A · log π, as RLOO has it (arXiv 2402.14740); right for the policy that sampled, so for one update a step."""
    return -advantages_n * logprobs_n


def likelihood(logprobs_n: Tensor) -> Tensor:
    """L = −log π: supervised fine-tuning."""
    return -logprobs_n


def value_loss(values_n: Tensor, old_values_n: Tensor, returns_n: Tensor, clip: float | None) -> Tensor:
    """The critic's loss; the bound keeps it near its old values as PPO's keeps the policy (Schulman et al., arXiv 1506.02438).

    L = ½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²).
    """
    squared_n = (values_n - returns_n) ** 2
    if clip is None:
        return squared_n / 2
    near_n = old_values_n + (values_n - old_values_n).clamp(-clip, clip)
    return torch.maximum(squared_n, (near_n - returns_n) ** 2) / 2


def kl_estimate(estimator: KlEstimator, logprobs_n: Tensor, reference_n: Tensor) -> Tensor:
    """KL(π‖π_ref) from single samples of π, by Schulman's three estimators; with r = π_ref/π:

    k1 = −log r,  k2 = ½ (log r)²,  k3 = r − 1 − log r.

    k1 and k3 have the right mean. As a penalty in the reward k1 has the right gradient. As a term of the loss k1 has gradient 0 in
    the mean, k2 that of KL(π‖π_ref), and k3, which DeepSeekMath uses (arXiv 2402.03300), that of KL(π_ref‖π).
    """
    log_r_n = log_ratio(reference_n, logprobs_n)
    match estimator:
        case "k1":
            return -log_r_n
        case "k2":
            return log_r_n**2 / 2
        case "k3":
            return log_r_n.exp() - 1 - log_r_n


def clip_counts(ratio_n: Tensor, advantages_n: Tensor, low: float, high: float, dual: float | None) -> Tensor:
    """How many tokens have lost their gradient to the lower, the upper and the dual clip, as a vector of three."""
    below = (ratio_n < 1 - low) & (advantages_n < 0)
    above = (ratio_n > 1 + high) & (advantages_n > 0)
    dually = (ratio_n > (dual or torch.inf)) & (advantages_n < 0)
    return torch.stack([below.sum(), above.sum(), dually.sum()])


def weight_clip_counts(ratio_n: Tensor, low: float, high: float) -> Tensor:
    """How many tokens weigh more or less than their ratio says, in the places of `clip_counts`."""
    below, above = ratio_n < 1 - low, ratio_n > 1 + high
    return torch.stack([below.sum(), above.sum(), torch.zeros_like(above.sum())])
