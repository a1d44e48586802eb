"""The loss on a tiny real model: against a loop, over packings, over masks, over a whole step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from learner import losses, model
from learner.advantages import group_advantages
from learner.batch import read_batch
from learner.config import LearnerConfig
from learner.mismatch import EngineMismatch
from learner.model import Policy
from learner.packing import Rows, pad, plan_micro_batches
from learner.trainer import PolicyTrainer
from tests.learner_episodes import FIRST, sample_group, tiny_model
from trajectories.schema import WeightVersion

CURRENT = {"current": FIRST, "learning_rate": 1e-3, "temperature": 1.0}


@pytest.fixture(scope="module")
def tables():
    return [sample_group(tiny_model(), group) for group in range(4)]


@pytest.fixture(scope="module")
def batch(tables):
    return read_batch(tables)


def reference_surrogate(logprob, old, advantage, low, high, dual):
    ratio = math.exp(logprob - old)
    clipped = min(max(ratio, 1 - low), 1 + high)
    objective = min(ratio * advantage, clipped * advantage)
    return -max(objective, dual * advantage) if dual is not None and advantage < 0 else -objective


@pytest.mark.parametrize("dual", [3.0, None])
def test_surrogate_equals_the_loop(dual):
    rng = np.random.default_rng(0)
    logprobs, old, advantages = (rng.normal(0, scale, 500) for scale in (1.5, 1.5, 1))
    loss = losses.clipped_surrogate(*map(torch.tensor, (logprobs, old, advantages)), 0.2, 0.28, dual)
    expected = [reference_surrogate(*row, 0.2, 0.28, dual) for row in zip(logprobs, old, advantages, strict=True)]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


def test_clipped_tokens_have_no_gradient_and_are_counted():
    old, advantages = torch.zeros(5), torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    logprobs = torch.tensor([0.5, -0.5, 2.0, -0.5, 0.1], requires_grad=True)  # above, below, dual, free, free
    losses.clipped_surrogate(logprobs, old, advantages, 0.2, 0.28, 3.0).sum().backward()
    assert (logprobs.grad == 0).tolist() == [True, True, True, False, False]
    assert losses.clip_counts(logprobs, old, advantages, 0.2, 0.28, 3.0).tolist() == [1, 1, 1]


def test_ratios_beyond_any_float_leave_gradients_finite():
    logprobs = torch.tensor([0.0, -300.0], requires_grad=True)
    old = torch.tensor([-300.0, 0.0])
    loss = losses.clipped_surrogate(logprobs, old, torch.tensor([-1.0, 1.0]), 0.2, 0.28, 3.0) + losses.kl_k3(logprobs, old)
    loss.sum().backward()
    assert torch.isfinite(logprobs.grad).all()
    assert torch.isfinite(loss).all()


def test_importance_weight_is_capped_and_carries_no_gradient():
    old = torch.tensor([0.0, -1.0], requires_grad=True)
    weight = losses.truncated_importance(old, torch.tensor([-5.0, 0.0]), cap=2.0)
    np.testing.assert_allclose(weight.numpy(), [2.0, math.exp(-1)], rtol=1e-6)
    assert not weight.requires_grad


def test_k3_is_zero_at_the_reference_and_positive_elsewhere():
    logprobs = torch.linspace(-3, 0, 7)
    assert not losses.kl_k3(logprobs, logprobs).any()
    np.testing.assert_allclose(
        losses.kl_k3(logprobs, torch.full((7,), -1.0)).numpy(), np.exp(-1 - logprobs) - 1 + 1 + logprobs, atol=1e-6
    )
    assert (losses.kl_k3(logprobs, torch.full((7,), -1.2)) > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chosen_log_probabilities_are_those_that_tokens_were_sampled_with(temperature):
    """The one shift, the temperature and the padding at once: any slip would show as a large difference."""
    batch = read_batch([sample_group(tiny_model(), group, temperature=temperature) for group in (7, 8)])
    micro = pad(batch, Rows(np.arange(len(batch.reward_e))))
    logprobs_n, _ = Policy(tiny_model())(micro.token_ids_bl, micro.loss_mask_bl, temperature)
    np.testing.assert_allclose(logprobs_n.detach().numpy(), batch.behaviour_t[micro.flat_n], atol=2e-5)


def gradients(trainer, batch, rows, old_t=None):
    trainer.policy.zero_grad()
    flat = trainer.flatten(batch, advantages(batch))
    totals = torch.zeros(6, dtype=torch.float64)
    trainer.accumulate(batch, rows, flat, old_t, 1.0, totals)
    return {name: p.grad.clone() for name, p in trainer.policy.named_parameters()}, totals


def advantages(batch):
    return group_advantages(batch.reward_e, batch.group_e, 1e-6).advantages_e


def drifted_old(batch):
    """Old log-probabilities as after some updates, so that ratios differ from one and some are clipped."""
    return torch.from_numpy(
        batch.behaviour_t + np.random.default_rng(3).normal(0, 0.3, len(batch.behaviour_t)).astype(np.float32)
    )


def test_packed_and_single_rows_and_the_loop_give_one_loss_and_one_gradient(batch):
    rows, old_t, config = np.arange(len(batch.reward_e)), drifted_old(batch), LearnerConfig()
    packed, packed_totals = gradients(PolicyTrainer(Policy(tiny_model()), config), batch, rows, old_t)
    single_config = config.model_copy(update={"microbatch_tokens": 1})
    single, single_totals = gradients(PolicyTrainer(Policy(tiny_model()), single_config), batch, rows, old_t)

    causal_lm, advantage_e, total = tiny_model(), advantages(batch), torch.tensor(0.0)
    for e in range(len(rows)):
        start, end = batch.offsets[e], batch.offsets[e + 1]
        scores = causal_lm(torch.tensor(batch.token_ids_t[start:end][None].astype(np.int64))).logits[0].log_softmax(-1)
        for i in np.flatnonzero(batch.loss_mask_t[start:end]):
            t, a = start + i, float(advantage_e[e])
            ratio = (scores[i - 1, batch.token_ids_t[t]] - old_t[t]).exp()
            objective = torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a)
            weight = min(math.exp(old_t[t] - batch.behaviour_t[t]), 2.0)
            total = total - weight * (objective.clamp(min=3 * a) if a < 0 else objective)
    loss = total / batch.loss_mask_t.sum()
    loss.backward()
    assert packed_totals[3:].sum() > 0, "the example must exercise the clip"
    np.testing.assert_allclose(packed_totals[0] / batch.loss_mask_t.sum(), loss.item(), atol=1e-5)
    np.testing.assert_allclose(packed_totals, single_totals, rtol=1e-5)
    for name, parameter in causal_lm.named_parameters():
        np.testing.assert_allclose(packed[f"causal_lm.{name}"], parameter.grad, atol=1e-5)
        np.testing.assert_allclose(packed[f"causal_lm.{name}"], single[f"causal_lm.{name}"], atol=1e-5)


def test_logits_in_chunks_give_the_same_gradient(batch, monkeypatch):
    rows = np.arange(len(batch.reward_e))
    whole, _ = gradients(PolicyTrainer(Policy(tiny_model()), LearnerConfig()), batch, rows, drifted_old(batch))
    monkeypatch.setattr(model, "MAX_LOGITS", 64 * 10)
    chunked, _ = gradients(PolicyTrainer(Policy(tiny_model()), LearnerConfig()), batch, rows, drifted_old(batch))
    for name, gradient in whole.items():
        np.testing.assert_allclose(chunked[name], gradient, atol=1e-6)


def test_what_follows_the_last_trained_token_and_what_labels_a_document_never_reach_the_gradient(tables):
    """A document token is context, never a target: as the last token of a row, where it is a label only, it changes nothing."""
    rows = [row for table in tables for row in table.to_pylist()]

    def ending_in_document(token):
        changed = [dict(row) for row in rows]
        for row in changed:
            row["token_ids"] = [*row["token_ids"], token]
            row["loss_mask"], row["logprobs"] = [*row["loss_mask"], False], [*row["logprobs"], 0.0]
        batch = read_batch([pa.Table.from_pylist(changed, schema=tables[0].schema)])
        return gradients(PolicyTrainer(Policy(tiny_model()), LearnerConfig()), batch, np.arange(len(rows)))[0]

    one, other = ending_in_document(3), ending_in_document(60)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(gradient.any() for gradient in one.values())


def test_logits_exist_only_at_positions_that_predict_trained_tokens(batch):
    """Each output-layer row belongs to a token with loss: no document label can have a gradient, because it has no logit."""
    policy, seen = Policy(tiny_model()), []
    policy.causal_lm.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    for rows in plan_micro_batches(batch.lengths, np.arange(len(batch.reward_e)), 1, 128)[0]:
        micro = pad(batch, rows)
        policy(micro.token_ids_bl, micro.loss_mask_bl, 1.0)
    assert sum(seen) == batch.loss_mask_t.sum() < len(batch.token_ids_t)


def test_a_step_raises_the_reward_and_measures_no_mismatch_on_its_own_samples():
    causal_lm = tiny_model()
    trainer = PolicyTrainer(Policy(causal_lm), LearnerConfig())
    rewards = []
    for step in range(12):
        version = WeightVersion(1, step)
        fresh = read_batch([sample_group(causal_lm, 100 * step + group, n=8, version=version) for group in range(6)])
        metrics = trainer.step(fresh, step=step, current=version, learning_rate=2e-2, temperature=1.0)
        rewards.append(metrics["reward_mean"])
        assert metrics["mismatch_mean"] < 1e-5
        assert metrics["mismatch_tokens"] == metrics["model_tokens"]
        assert metrics["effective_samples"] == pytest.approx(1, abs=1e-4)
        assert metrics["optimizer_steps"] == 2
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15


@pytest.mark.parametrize("minibatches", [1, 2])
def test_mismatch_is_measured_only_on_the_current_version_and_ends_the_run(tables, minibatches):
    batch = read_batch(tables)
    config = LearnerConfig(minibatches=minibatches)
    spoilt = dataclasses.replace(batch, behaviour_t=np.where(batch.loss_mask_t, batch.behaviour_t - 0.5, 0).astype(np.float32))
    policy = Policy(tiny_model())
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    with pytest.raises(EngineMismatch, match=r"differ by 0\.5 .* above learner.max_mismatch = 0\.01"):
        PolicyTrainer(policy, config).step(spoilt, step=0, **CURRENT)
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters()), "the step must end before any update"
    later = {**CURRENT, "current": WeightVersion(1, 2)}
    metrics = PolicyTrainer(policy, config).step(spoilt, step=0, **later)
    assert metrics["mismatch_tokens"] == 0
    assert metrics["drift_mean"] == pytest.approx(0.5, abs=1e-3)
    assert metrics["age_max"] == 2
    assert metrics["importance_mean"] == pytest.approx(math.exp(0.5), abs=1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tables):
    policy = Policy(tiny_model())
    trainer = PolicyTrainer(policy, LearnerConfig(minibatches=1))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    policy.causal_lm.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    metrics = trainer.step(read_batch(tables), step=0, **CURRENT)
    assert metrics["skipped_updates"] == 1
    assert metrics["optimizer_steps"] == 0
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_groups_of_equal_rewards_are_dropped_or_kept_as_configured():
    causal_lm = tiny_model()
    equal = [sample_group(causal_lm, group, equal_rewards=True) for group in (0, 1)]
    mixed = [*equal, sample_group(causal_lm, 2)]
    dropped = PolicyTrainer(Policy(tiny_model()), LearnerConfig()).step(read_batch(mixed), step=0, **CURRENT)
    assert dropped["groups_uninformative"] == 2
    assert dropped["episodes_trained"] == 4
    assert dropped["episodes"] == 12
    kept = PolicyTrainer(Policy(tiny_model()), LearnerConfig(zero_advantage="keep")).step(read_batch(mixed), step=0, **CURRENT)
    assert kept["episodes_trained"] == 12
    nothing = PolicyTrainer(Policy(tiny_model()), LearnerConfig()).step(read_batch(equal), step=0, **CURRENT)
    assert nothing["optimizer_steps"] == 0
    assert nothing["grad_norm"] == 0


def test_reference_and_entropy_terms_enter_the_loss(tables):
    batch = read_batch(tables)
    config = LearnerConfig(minibatches=1, kl_coefficient=0.5, entropy_coefficient=0.1)
    with pytest.raises(ValueError, match="needs a reference"):
        PolicyTrainer(Policy(tiny_model()), config)
    policy = Policy(tiny_model(), entropy_gradient=True)
    metrics = PolicyTrainer(policy, config, reference=Policy(tiny_model(seed=1))).step(batch, step=0, **CURRENT)
    plain = PolicyTrainer(Policy(tiny_model()), LearnerConfig(minibatches=1)).step(batch, step=0, **CURRENT)
    assert metrics["kl_reference"] > 0
    expected = plain["loss"] + 0.5 * metrics["kl_reference"] - 0.1 * metrics["entropy"]
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)
