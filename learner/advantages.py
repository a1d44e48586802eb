"""How much better than expected: one number for every trained token. Pure numpy, float64 inside.

`_e` counts episodes, `_t` all tokens, `_n` the chosen tokens, which carry loss. Only chosen tokens are steps: a document between two
turns is no action of the policy, and no value is read from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.algorithms import Advantage, resolve
from learner.batch import EpisodeBatch
from learner.config import AlgorithmConfig

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Advantages(NamedTuple):
    """0 at tokens without loss. Returns are what a critic should have said, and only there where one is used."""

    advantages_t: NDArray[np.float32]
    returns_t: NDArray[np.float32] | None
    informative_e: NDArray[np.bool_]


def token_advantages(
    batch: EpisodeBatch,
    config: AlgorithmConfig,
    *,
    values_t: NDArray[np.float32] | None = None,
    penalty_t: NDArray[np.float32] | None = None,
) -> Advantages:
    """The advantages that the algorithm wants; `penalty_t`, β·KL of each token, is taken off the rewards."""
    recipe, chosen = resolve(config), np.flatnonzero(batch.loss_mask_t)
    if recipe.needs_critic and values_t is None:
        raise ValueError(f"learner.advantage {recipe.advantage!r} needs the values of a critic: hand in values_t")
    values_n, penalty_n = (
        np.zeros(len(chosen)) if given_t is None else given_t[chosen].astype(np.float64) for given_t in (values_t, penalty_t)
    )
    informative_e = informative_episodes(batch, config)
    advantages_n = _estimate(recipe.advantage, batch, config, chosen, values_n, penalty_n)
    returns_t = _spread(advantages_n + values_n, chosen, batch) if recipe.needs_critic else None
    if recipe.whiten:
        taught_n = informative_e[_episodes(batch)[chosen]]
        advantages_n[taught_n] = whitened(advantages_n[taught_n], config.advantage_epsilon)
    return Advantages(_spread(advantages_n, chosen, batch), returns_t, informative_e)


def informative_episodes(batch: EpisodeBatch, config: AlgorithmConfig) -> NDArray[np.bool_]:
    """False for the episodes of a group whose rewards are all equal, where the algorithm compares within groups."""
    recipe = resolve(config)
    if not recipe.compares_groups:
        return np.ones(len(batch), np.bool_)
    if recipe.advantage != "turn":
        return differing(batch.reward_e, batch.group_e)
    _, process_k, episode_k = _turn_rewards(batch)
    groups = np.unique(batch.group_e[episode_k[differing(process_k, batch.group_e[episode_k])]])
    return differing(batch.outcome_e, batch.group_e) | np.isin(batch.group_e, groups)


def differing(rewards_i: NDArray, group_i: Indices) -> NDArray[np.bool_]:
    """Whether the rewards of i's group differ at all; found by comparing, because a mean of equal floats may differ from them."""
    groups = int(group_i.max()) + 1 if len(group_i) else 0
    lowest_g, highest_g = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(lowest_g, group_i, rewards_i)
    np.maximum.at(highest_g, group_i, rewards_i)
    return np.asarray((lowest_g < highest_g)[group_i])


def group_centred(rewards_i: NDArray, group_i: Indices) -> Floats:
    """A_i = r_i − mean(r) over the group of i (Dr. GRPO, arXiv 2503.20783); exactly 0 where all are equal."""
    mean_g = np.bincount(group_i, rewards_i) / np.maximum(np.bincount(group_i), 1)
    return np.where(differing(rewards_i, group_i), rewards_i - mean_g[group_i], 0.0)


def group_normalised(rewards_i: NDArray, group_i: Indices, epsilon: float) -> Floats:
    """A_i = (r_i − mean(r)) / (std(r) + ε) with the population's deviation (GRPO, arXiv 2402.03300).

    Example:
        >>> group_normalised(np.array([1, 0, 5, 5]), np.array([0, 0, 1, 1]), 1e-6).round(3).tolist()
        [1.0, -1.0, 0.0, 0.0]
    """
    centred_i = group_centred(rewards_i, group_i)
    variance_g = np.bincount(group_i, centred_i**2) / np.maximum(np.bincount(group_i), 1)
    return centred_i / (np.sqrt(variance_g)[group_i] + epsilon)


def leave_one_out(rewards_i: NDArray, group_i: Indices) -> Floats:
    """A_i = r_i − mean of the others' r = n/(n − 1)·(r_i − mean(r)) (RLOO, arXiv 2402.14740); alone in its group: 0."""
    count_i = np.bincount(group_i)[group_i]
    return group_centred(rewards_i, group_i) * count_i / np.maximum(count_i - 1, 1)


def whitened(values_n: Floats, epsilon: float) -> Floats:
    """(x − mean) / (std + ε): mean 0, deviation 1; exactly 0 where all are equal."""
    if not len(values_n) or values_n.min() == values_n.max():
        return np.zeros_like(values_n)
    return (values_n - values_n.mean()) / (values_n.std() + epsilon)


def discounted_sums(values_n: Floats, lengths_s: Indices, factor: float) -> Floats:
    """Σ_{k ≥ n} factor^(k − n) · x_k to the end of n's own sequence; sequences of these lengths lie one after another.

    Example:
        >>> discounted_sums(np.array([1.0, 1.0, 1.0, 8.0]), np.array([3, 1]), 0.5).tolist()
        [1.75, 1.5, 1.0, 8.0]
    """
    sums_n, last_s = values_n.copy(), np.cumsum(lengths_s) - 1
    for back in range(1, int(lengths_s.max(initial=0))):  # all sequences at once, from their ends
        at = last_s[lengths_s > back] - back
        sums_n[at] += factor * sums_n[at + 1]
    return sums_n


def gae(rewards_n: Floats, values_n: Floats, lengths_s: Indices, gamma: float, lam: float) -> Floats:
    """δ_n = r_n + γ·V_{n+1} − V_n and A_n = Σ_k (γλ)^k·δ_{n+k} (arXiv 1506.02438); the returns are A + V.

    After a sequence's last step the value is 0. No sequence is empty.
    """
    next_n = np.append(values_n[1:], 0.0)[: len(values_n)]
    next_n[np.cumsum(lengths_s) - 1] = 0.0
    return discounted_sums(rewards_n + gamma * next_n - values_n, lengths_s, gamma * lam)


def _estimate(
    kind: Advantage, batch: EpisodeBatch, config: AlgorithmConfig, chosen: Indices, values_n: Floats, penalty_n: Floats
) -> Floats:
    episode_n, rewards_e, epsilon = _episodes(batch)[chosen], batch.reward_e.astype(np.float64), config.advantage_epsilon
    net_e = rewards_e - np.bincount(episode_n, penalty_n, len(batch))
    match kind:
        case "none":
            return np.ones(len(chosen))
        case "group":
            return group_normalised(net_e, batch.group_e, epsilon)[episode_n]
        case "group_mean":
            return group_centred(net_e, batch.group_e)[episode_n]
        case "leave_one_out":
            return leave_one_out(net_e, batch.group_e)[episode_n]
        case "batch":
            return whitened(_to_go(rewards_e, episode_n, penalty_n), epsilon)
        case "batch_baseline":
            return whitened(_to_go(group_centred(rewards_e, batch.group_e), episode_n, penalty_n), epsilon)
        case "turn":
            return _turn_advantages(batch, config, chosen)
        case "gae":
            # Episodes, or turns: then each turn is a sample of its own, and ends there.
            lengths_s = _run_lengths(_turn_keys(batch, chosen) if config.horizon == "turn" else episode_n)
            rewards_n = _step_rewards(batch, chosen, lengths_s) - penalty_n
            return gae(rewards_n, values_n, lengths_s, config.gae_gamma, config.gae_lambda)


def _to_go(rewards_e: Floats, episode_n: Indices, penalty_n: Floats) -> Floats:
    """REINFORCE++ before whitening (arXiv 2501.03262): the episode's reward less what KL still costs from here on."""
    return rewards_e[episode_n] - discounted_sums(penalty_n, np.bincount(episode_n, minlength=len(rewards_e)), 1.0)


def _turn_advantages(batch: EpisodeBatch, config: AlgorithmConfig, chosen: Indices) -> Floats:
    """A_t = Â(outcome) + Σ_{j ≥ turn(t)} γ^(j − turn(t)) · p̂_j, with p̂ the process rewards of all turns of the group, normalised.

    γ = 1 is DeepSeekMath's process supervision (arXiv 2402.03300); γ = 0 credits a turn with its own reward alone.
    """
    outcome_e = group_normalised(batch.outcome_e, batch.group_e, config.advantage_epsilon)
    keys_k, process_k, episode_k = _turn_rewards(batch)
    normalised_k = group_normalised(process_k, batch.group_e[episode_k], config.advantage_epsilon)
    credit_k = discounted_sums(normalised_k, np.bincount(episode_k, minlength=len(batch)), config.turn_discount)
    return outcome_e[_episodes(batch)[chosen]] + credit_k[np.searchsorted(keys_k, _turn_keys(batch, chosen))]


def _turn_rewards(batch: EpisodeBatch) -> tuple[Indices, Floats, Indices]:
    """Every turn of every episode, in order: its key, the sum of its process rewards, its episode."""
    written = np.flatnonzero(batch.turn_t >= 0)
    keys_k, first_k, turn_w = np.unique(_turn_keys(batch, written), return_index=True, return_inverse=True)
    process_k = np.bincount(turn_w, batch.process_t[written], len(keys_k)).astype(np.float64)
    return keys_k, process_k, _episodes(batch)[written[first_k]]


def _turn_keys(batch: EpisodeBatch, tokens: Indices) -> Indices:
    """One number per turn of an episode, growing along the batch."""
    turns = int(batch.turn_t.max(initial=0)) + 1
    return _episodes(batch)[tokens] * turns + batch.turn_t[tokens]


def _step_rewards(batch: EpisodeBatch, chosen: Indices, lengths_s: Indices) -> Floats:
    """The rewards of GAE's steps. A sequence ends with the outcome of its episode; under the horizon "turn" every turn is a sequence,
    so that its reward is the outcome plus its own process reward, as R3-RAG's PPO has it (arXiv 2505.23794).
    """
    rewards_n, episode_n = np.zeros(len(chosen)), _episodes(batch)[chosen]
    last_s = np.cumsum(lengths_s) - 1
    rewards_n[last_s] = batch.outcome_e[episode_n[last_s]]
    # A turn's last token may carry no loss: its reward goes to the chosen token before it, else to the episode's first.
    rewarded = np.flatnonzero(batch.process_t)
    step = np.searchsorted(chosen, rewarded, side="right") - 1
    first_e, end_e = np.searchsorted(chosen, batch.offsets[:-1]), np.searchsorted(chosen, batch.offsets[1:])
    owner = _episodes(batch)[rewarded]
    trained = end_e[owner] > first_e[owner]
    np.add.at(rewards_n, np.maximum(step, first_e[owner])[trained], batch.process_t[rewarded][trained])
    return rewards_n


def _episodes(batch: EpisodeBatch) -> Indices:
    return batch.per_token(np.arange(len(batch)))


def _run_lengths(keys_n: Indices) -> Indices:
    """How long each run of equal keys is."""
    edges = np.flatnonzero(np.diff(keys_n, prepend=-1, append=-1))
    return np.diff(edges)


def _spread(values_n: Floats, chosen: Indices, batch: EpisodeBatch) -> NDArray[np.float32]:
    values_t = np.zeros(len(batch.token_ids_t), np.float32)
    values_t[chosen] = values_n
    return values_t
