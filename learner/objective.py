"""The whole loss of a micro-batch: correction × surrogate + KL − entropy, weighted and summed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner import losses
from learner.algorithms import Recipe, resolve
from learner.config import AlgorithmConfig
from learner.correction import correct

# What `objective` counts, in this order. The first are whole as they stand: `loss` is Σ w·L, so over a minibatch's micro-batches
# and ranks it sums to the loss that was minimised. The others are sums over tokens, to be divided by the number of trained tokens.
TOTALS_SUMMED = ("loss", "masked_episodes")
TOTALS_PER_TOKEN = ("surrogate", "entropy", "kl_reference", "clip_low", "clip_high", "clip_dual", "masked_tokens")


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The n chosen tokens of one micro-batch of whole episodes."""

    logprobs_n: Tensor  # with gradient
    entropy_n: Tensor
    old_n: Tensor  # of the policy before this step's first update
    behaviour_n: Tensor  # of the engine
    advantages_n: Tensor
    weights_n: Tensor  # learner/weighting.py
    episode_n: Tensor  # 0 to episodes − 1
    episodes: int
    reference_n: Tensor | None = None


def objective(tokens: TokenBatch, config: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Σ w·L with its gradient, and what TOTALS_SUMMED and TOTALS_PER_TOKEN name, in float64."""
    recipe = resolve(config)
    corrected = correct(recipe.correction, tokens.old_n, tokens.behaviour_n, tokens.episode_n, tokens.episodes, config)
    surrogate_n, clips = _surrogate(tokens, recipe, config.dual_clip)
    surrogate_n = corrected.weights_n * surrogate_n
    loss_n, kl_n = surrogate_n, torch.zeros_like(surrogate_n)
    if tokens.reference_n is not None:
        in_loss = recipe.kl_in == "loss"
        # In the reward the estimate may be negative; what is reported never is.
        kl_n = losses.kl_estimate(recipe.kl_estimator if in_loss else "k3", tokens.logprobs_n, tokens.reference_n)
        loss_n = loss_n + config.kl_coefficient * kl_n if in_loss else loss_n
    if config.entropy_coefficient:
        loss_n = loss_n - config.entropy_coefficient * tokens.entropy_n
    loss = (tokens.weights_n * loss_n).sum()
    with torch.no_grad():
        sums = [loss, corrected.masked_episodes, surrogate_n.sum(), tokens.entropy_n.sum(), kl_n.sum(), *clips]
        return loss, torch.stack([value.detach().double() for value in (*sums, corrected.masked_tokens)])


def _surrogate(tokens: TokenBatch, recipe: Recipe, dual: float | None) -> tuple[Tensor, Tensor]:
    """The policy's loss per token, and the tokens beyond its lower, upper and dual bound."""
    logprobs_n, advantages_n, low, high = tokens.logprobs_n, tokens.advantages_n, recipe.clip_low, recipe.clip_high
    match recipe.surrogate:
        case "clipped":
            ratio_n = losses.token_ratio(logprobs_n, tokens.old_n)
            counts = losses.clip_counts(ratio_n, advantages_n, low, high, dual)
            return losses.clipped(ratio_n, advantages_n, low, high, dual), counts
        case "sequence_clipped":  # its bounds are far inside the dual clip's
            ratio_n = losses.sequence_ratio(logprobs_n, tokens.old_n, tokens.episode_n, tokens.episodes)
            counts = losses.clip_counts(ratio_n, advantages_n, low, high, None)
            return losses.clipped(ratio_n, advantages_n, low, high, None), counts
        case "clipped_weight":
            ratio_n = losses.token_ratio(logprobs_n, tokens.old_n)
            counts = losses.weight_clip_counts(ratio_n, low, high)
            return losses.clipped_weight(logprobs_n, ratio_n, advantages_n, low, high), counts
        case "reinforce":
            return losses.reinforce(logprobs_n, advantages_n), torch.zeros(3, device=logprobs_n.device)
        case "likelihood":
            return losses.likelihood(logprobs_n), torch.zeros(3, device=logprobs_n.device)
