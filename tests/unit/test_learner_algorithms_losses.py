"""Losses, weights, corrections and their sum against loops, gradients included."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from learner import losses
from learner.algorithms import PUBLISHED, resolve
from learner.config import AlgorithmConfig
from learner.correction import correct
from learner.objective import TOTALS_PER_TOKEN, TOTALS_SUMMED, TokenBatch, objective
from learner.weighting import token_weights
from tests.learner_batches import Turn, batch_of, batches

ALGORITHMS = sorted(PUBLISHED)
TOTALS = (*TOTALS_SUMMED, *TOTALS_PER_TOKEN)


def config(algorithm, **settings):
    return AlgorithmConfig(algorithm=algorithm, max_loss_tokens=50, **settings)


def tokens_of(batch, algorithm, seed=0, scale=0.4, reference=True, **settings):
    """One micro-batch of the whole batch: drifted, mismatched, with an advantage per episode, in float64."""
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(batch.loss_mask_t)
    logprobs, old, behaviour, other = (torch.tensor(rng.normal(-1.5, scale, len(chosen))) for _ in range(4))
    recipe = resolve(config(algorithm, **settings))
    weights_t = token_weights(batch, np.arange(len(batch)), recipe.aggregation, 50).astype(np.float64)
    episode_n = torch.tensor(batch.per_token(np.arange(len(batch)))[chosen])
    return TokenBatch(
        logprobs_n=logprobs.requires_grad_(), entropy_n=torch.tensor(rng.uniform(0, 2, len(chosen))), old_n=old,
        behaviour_n=behaviour, advantages_n=torch.tensor(rng.normal(size=len(batch)))[episode_n],
        weights_n=torch.tensor(weights_t[chosen]), episode_n=episode_n, episodes=len(batch),
        reference_n=other if reference else None,
    )  # fmt: skip


def part(tokens, chosen_e):
    """The micro-batch of some of the episodes."""
    inside = torch.isin(tokens.episode_n, torch.tensor(chosen_e))
    place = {e: i for i, e in enumerate(chosen_e)}
    changed = {
        field.name: getattr(tokens, field.name)[inside] for field in dataclasses.fields(tokens) if field.name.endswith("_n")
    }
    changed["episode_n"] = torch.tensor([place[int(e)] for e in changed["episode_n"]], dtype=torch.int64)
    return dataclasses.replace(tokens, **changed, episodes=len(chosen_e))


def gradient(tokens, settings):
    loss, counts = objective(tokens, settings)
    (found,) = torch.autograd.grad(loss, tokens.logprobs_n)
    return loss.detach(), found, counts


def loop_surrogate(algorithm, tokens, recipe, n):
    """−J of one token as its paper writes it; GSPO with the episode's ratio itself."""
    logprob, old, advantage = tokens.logprobs_n[n], tokens.old_n[n], tokens.advantages_n[n]
    ratio = (logprob - old).exp()
    if algorithm == "gspo":
        own = tokens.episode_n == tokens.episode_n[n]
        ratio = (tokens.logprobs_n[own] - tokens.old_n[own]).mean().exp()
    bounded = ratio.clamp(1 - recipe.clip_low, 1 + recipe.clip_high)
    if algorithm == "sft":
        return -logprob
    if algorithm == "rloo":
        return -advantage * logprob
    if algorithm == "cispo":
        return -bounded.detach() * advantage * logprob
    objective = torch.minimum(ratio * advantage, bounded * advantage)
    return -(objective.clamp(min=3.0 * advantage) if advantage < 0 and algorithm != "gspo" else objective)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(batch=batches(), seed=st.integers(0, 99), estimator=st.sampled_from(["k2", "k3"]))
@settings(max_examples=20)
def test_the_objective_and_its_gradient_equal_the_loop(algorithm, batch, seed, estimator):
    wide = {"clip_low": 0.03, "clip_high": 0.04} if algorithm == "gspo" else {}
    # One weight per episode, with which GSPO's two forms agree; all others weigh tokens.
    settings = config(algorithm, **wide, kl_coefficient=0.0 if algorithm == "dapo" else 0.3, entropy_coefficient=0.1,
                      kl_estimator=estimator, correction="sequence" if algorithm == "gspo" else None)  # fmt: skip
    tokens, recipe = tokens_of(batch, algorithm, seed), resolve(settings)
    total = torch.tensor(0.0, dtype=torch.float64)
    for n in range(len(tokens.old_n)):
        own = tokens.episode_n == tokens.episode_n[n]
        drift = tokens.old_n - tokens.behaviour_n
        weight = {"none": 1.0, "token": drift[n].exp(), "sequence": drift[own].sum().exp()}[recipe.correction]
        term = min(float(weight), 2.0) * loop_surrogate(algorithm, tokens, recipe, n)
        log_r = tokens.reference_n[n] - tokens.logprobs_n[n]
        if recipe.kl_in == "loss":
            kl = log_r.exp() - 1 - log_r if estimator == "k3" else log_r**2 / 2
            term = term + settings.kl_coefficient * kl
        total = total + tokens.weights_n[n] * (term - 0.1 * tokens.entropy_n[n])
    (expected,) = torch.autograd.grad(total, tokens.logprobs_n)
    loss, found, counts = gradient(tokens, settings)
    np.testing.assert_allclose(loss, total.detach(), atol=1e-9)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert counts.dtype == torch.float64
    assert dict(zip(TOTALS, counts.tolist(), strict=True))["loss"] == pytest.approx(float(loss))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(batch=batches(), cuts=st.lists(st.booleans(), min_size=7, max_size=7))
@settings(max_examples=20)
def test_loss_gradient_and_counts_do_not_depend_on_how_a_minibatch_is_cut(algorithm, batch, cuts):
    settings = config(algorithm, kl_coefficient=0.0 if algorithm == "dapo" else 0.3, mask_high=1.8, mask_episode_low=0.8)
    tokens = tokens_of(batch, algorithm)
    whole_loss, whole, whole_counts = gradient(tokens, settings)
    pieces = [[e for e in range(len(batch)) if cuts[e] is side] for side in (True, False)]
    parts = [gradient_of_part(tokens, chosen_e, settings) for chosen_e in pieces if chosen_e]
    np.testing.assert_allclose(sum(loss for loss, _, _ in parts), whole_loss, atol=1e-12)
    np.testing.assert_allclose(sum(found for _, found, _ in parts), whole, atol=1e-12)
    np.testing.assert_allclose(sum(counts for _, _, counts in parts), whole_counts, atol=1e-9)


def gradient_of_part(tokens, chosen_e, settings):
    loss, counts = objective(part(tokens, chosen_e), settings)
    return loss.detach(), torch.autograd.grad(loss, tokens.logprobs_n)[0], counts


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("correction", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_ratios_beyond_any_float_leave_everything_finite(algorithm, correction, estimator):
    batch = batch_of([[Turn(4, 1), Turn(4)]] * 2, [0, 0], [0, 0])
    coefficient = 0.0 if algorithm == "dapo" else 0.1
    settings = config(algorithm, correction=correction, kl_coefficient=coefficient, kl_in="loss", kl_estimator=estimator)
    loss, found, counts = gradient(tokens_of(batch, algorithm, scale=500), settings)
    assert math.isfinite(loss)
    assert torch.isfinite(found).all()
    assert torch.isfinite(counts).all()


def test_a_micro_batch_without_chosen_tokens_adds_nothing():
    for algorithm in ALGORITHMS:
        empty = part(tokens_of(batch_of([[Turn(1)]], [0], [0]), algorithm), [])
        loss, counts = objective(dataclasses.replace(empty, episodes=1), config(algorithm))
        assert loss == 0
        assert not counts.any()


def test_clipped_tokens_have_no_gradient_and_are_counted():
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    logprobs = torch.tensor([0.5, -0.5, 2.0, -0.5, 0.1], requires_grad=True)  # above, below, dual, free, free
    ratio = losses.token_ratio(logprobs, torch.zeros(5))
    losses.clipped(ratio, advantages, 0.2, 0.28, 3.0).sum().backward()
    assert (logprobs.grad == 0).tolist() == [True, True, True, False, False]
    assert losses.clip_counts(ratio, advantages, 0.2, 0.28, 3.0).tolist() == [1, 1, 1]
    assert losses.clip_counts(ratio, advantages, 0.2, 0.28, None).tolist() == [1, 1, 0]


def test_cispo_keeps_a_gradient_for_every_token_and_counts_the_bounded_weights():
    logprobs = torch.tensor([2.0, -2.0, 0.1], requires_grad=True)
    ratio = losses.token_ratio(logprobs, torch.zeros(3))
    losses.clipped_weight(logprobs, ratio, torch.ones(3), 0.2, 0.28).sum().backward()
    np.testing.assert_allclose(logprobs.grad, [-1.28, -0.8, -math.exp(0.1)], rtol=1e-6)
    assert losses.weight_clip_counts(ratio, 0.2, 0.28).tolist() == [1, 1, 0]


def test_gspo_clips_episodes_whole():
    """Episode 0's tokens move apart, but its mean stays; episode 1's mean moves too far for its advantage."""
    logprobs = torch.tensor([0.5, -0.5, 0.2, 0.2, 0.2], requires_grad=True)
    episode = torch.tensor([0, 0, 1, 1, 1])
    ratio = losses.sequence_ratio(logprobs, torch.zeros(5), episode, 2)
    np.testing.assert_allclose(ratio.detach(), [1, 1, *[math.exp(0.2)] * 3], rtol=1e-6)
    losses.clipped(ratio, torch.ones(5), 0.1, 0.1, None).sum().backward()
    assert logprobs.grad.tolist() == [-1, -1, 0, 0, 0]


@settings(max_examples=50)
@given(batch=batches(), kept=st.lists(st.booleans(), min_size=7, max_size=7))
def test_token_weights_equal_the_loop(batch, kept):
    batch.loss_mask_t[batch.offsets[0] : batch.offsets[1]] = False  # an episode without loss
    rows = [e for e in range(len(batch)) if kept[e]]
    lengths = {e: int(batch.loss_mask_t[batch.offsets[e] : batch.offsets[e + 1]].sum()) for e in rows}
    tokens, episodes = sum(lengths.values()), sum(length > 0 for length in lengths.values())
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        expected = np.zeros(len(batch.token_ids_t))
        for e in rows:
            for t in range(batch.offsets[e], batch.offsets[e + 1]):
                if batch.loss_mask_t[t]:
                    parts = {"token_mean": tokens, "sequence_mean": episodes * lengths[e], "constant": episodes * 50}
                    expected[t] = 1 / parts[aggregation]
        found = token_weights(batch, np.array(rows, np.int64), aggregation, 50)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.dtype == np.float32


@pytest.mark.parametrize("kind", ["none", "token", "sequence"])
@settings(max_examples=40)
@given(batch=batches(), seed=st.integers(0, 99))
def test_correction_equals_the_loop(kind, batch, seed):
    tokens = tokens_of(batch, "grpo", seed)
    old = tokens.old_n.clone().requires_grad_()
    settings = AlgorithmConfig(importance_cap=1.5, mask_low=0.6, mask_high=2.5, mask_episode_low=0.7, mask_episode_high=1.3)
    found = correct(kind, old, tokens.behaviour_n, tokens.episode_n, tokens.episodes, settings)
    expected, masked_tokens, masked_episodes = [], 0, 0
    for e in range(len(batch)):
        drifts = [float(tokens.old_n[n] - tokens.behaviour_n[n]) for n in range(len(old)) if tokens.episode_n[n] == e]
        outside = not 0.7 <= math.exp(np.mean(drifts)) <= 1.3
        masked_episodes += outside
        for drift in drifts:
            masked = outside or not 0.6 <= math.exp(drift) <= 2.5
            masked_tokens += masked
            weight = {"none": 1.0, "token": math.exp(drift), "sequence": math.exp(sum(drifts))}[kind]
            expected.append(0.0 if masked else 1.0 if kind == "none" else min(weight, 1.5))
    np.testing.assert_allclose(found.weights_n, expected, atol=1e-9)
    assert (int(found.masked_tokens), int(found.masked_episodes)) == (masked_tokens, masked_episodes)
    assert not found.weights_n.requires_grad


def test_value_loss_is_bounded_by_the_step_from_the_old_value():
    values = torch.tensor([1.0, 1.0, 0.1], requires_grad=True)
    loss = losses.value_loss(values, torch.zeros(3), torch.tensor([2.0, 0.0, 0.5]), 0.2)
    np.testing.assert_allclose(loss.detach(), [1.8**2 / 2, 0.5, 0.08], rtol=1e-6)
    loss.sum().backward()
    np.testing.assert_allclose(values.grad, [0.0, 1.0, -0.4], atol=1e-6)
    plain = losses.value_loss(values, torch.zeros(3), torch.tensor([2.0, 0.0, 0.5]), None)
    np.testing.assert_allclose(plain.detach(), [0.5, 0.5, 0.08], rtol=1e-6)


def test_each_kl_estimator_has_the_mean_and_the_gradient_that_its_docstring_says():
    """Over all tokens of a small vocabulary, so that means are exact."""
    generator = torch.Generator().manual_seed(0)
    scores, other = (torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(2))
    scores.requires_grad_()
    log_p, log_q = scores.log_softmax(0), other.log_softmax(0)
    p, q = log_p.exp(), log_q.exp()
    forward, backward = (p * (log_p - log_q)).sum(), (q * (log_q - log_p)).sum()

    def slope(value):
        return torch.autograd.grad(value, scores, retain_graph=True)[0]

    for estimator in ("k1", "k3"):
        mean = (p * losses.kl_estimate(estimator, log_p, log_q)).sum()
        assert mean.item() == pytest.approx(forward.item())

    def in_loss(estimator):
        return slope((p.detach() * losses.kl_estimate(estimator, log_p, log_q)).sum())

    def in_reward(estimator):
        return slope((p.detach() * losses.kl_estimate(estimator, log_p, log_q).detach() * log_p).sum())

    np.testing.assert_allclose(in_loss("k1"), 0, atol=1e-12)
    np.testing.assert_allclose(in_loss("k2"), slope(forward), atol=1e-12)
    np.testing.assert_allclose(in_loss("k3"), slope(backward), atol=1e-12)
    np.testing.assert_allclose(in_reward("k1"), slope(forward), atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"algorithm": "dapo", "clip_high": 0.2}, "dapo clips higher"),
        ({"algorithm": "dapo", "zero_advantage": "keep"}, "dapo drops groups"),
        ({"algorithm": "dapo", "kl_coefficient": 0.1}, "dapo has no KL term"),
        ({"algorithm": "gspo", "clip_low": 0.2}, "leave clip_low and clip_high out"),
        ({"algorithm": "dr_grpo"}, "set it, for instance to budget.max_response_tokens"),
        ({"surrogate": "likelihood"}, "likelihood looks at no reward"),
        ({"algorithm": "sft", "advantage": "group"}, "likelihood looks at no reward"),
        ({"advantage": "none"}, "nothing else can be learned"),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1"}, "gradient 0 in the mean"),
        ({"kl_coefficient": 0.1, "kl_in": "reward"}, "blow up the penalty"),
        ({"algorithm": "sft", "kl_coefficient": 0.1, "kl_in": "reward"}, "set kl_in to 'loss'"),
        ({"mismatch_warn": 0.01}, "must lie below max_mismatch"),
    ],
)
def test_contradictions_are_one_line(wrong, words):
    with pytest.raises(ValidationError, match=words) as error:
        AlgorithmConfig(**wrong)
    assert len(error.value.errors()) == 1 and "\n" not in error.value.errors()[0]["msg"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_set_replaces_what_the_algorithm_says_and_nothing_else(algorithm):
    assert resolve(config(algorithm)).clip_high == PUBLISHED[algorithm].clip_high
    changed = resolve(config(algorithm, clip_low=0.03, clip_high=0.045, kl_in="loss"))
    assert (changed.clip_high, changed.kl_in, changed.kl_estimator) == (0.045, "loss", "k3")
    assert changed.surrogate == PUBLISHED[algorithm].surrogate
