"""The trainer on a tiny real model: against a loop, over packings, over masks, over whole steps and bad input."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from learner.advantages import token_advantages
from learner.batch import read_batch
from learner.config import LearnerConfig
from learner.mismatch import EngineMismatch
from learner.model import make_critic, make_policy
from learner.packing import Bin, flatten, plan_micro_batches
from learner.trainer import TOTALS, PolicyTrainer, TrainingDiverged
from tests.learner_episodes import FIRST, sample_group, tiny_model
from trajectories.schema import WeightVersion

CURRENT = {"current": FIRST, "learning_rate": 1e-3}
EVERY = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo", "sft")


def settings_of(algorithm: str, **others) -> LearnerConfig:
    constant = {"max_loss_tokens": 64} if algorithm == "dr_grpo" else {}
    return LearnerConfig(algorithm=algorithm, **constant, **others)


def make_trainer(config: LearnerConfig | None = None, **others) -> PolicyTrainer:
    config = config or LearnerConfig()
    critic = make_critic(tiny_model(seed=2), config) if config.algorithm == "ppo" else None
    return PolicyTrainer(make_policy(tiny_model(), config), config, critic=critic, **others)


@pytest.fixture(scope="module")
def tables():
    return [sample_group(tiny_model(), group) for group in range(4)]


@pytest.fixture(scope="module")
def batch(tables):
    return read_batch(tables)


def with_rows(tables, change):
    """The same tables with every row changed by `change(row)`."""
    rows = [row for table in tables for row in table.to_pylist()]
    for row in rows:
        row.update(change(row))
    return pa.Table.from_pylist(rows, schema=tables[0].schema)


def drifted(batch):
    """Old log-probabilities as after some updates, so that ratios differ from one and some are clipped."""
    noise = np.random.default_rng(3).normal(0, 0.3, len(batch.behaviour_t)).astype(np.float32)
    return torch.from_numpy(batch.behaviour_t + noise)


def gradients(trainer, batch, old_t=None):
    """Of the whole batch as one minibatch."""
    trainer.policy.zero_grad()
    flat, _ = trainer.prepare(batch, ahead=True)
    flat = dataclasses.replace(flat, old_t=flat.old_t if old_t is None else old_t)
    totals = torch.zeros(len(TOTALS), dtype=torch.float64)
    trainer.accumulate(batch, np.arange(len(batch)), flat, totals)
    found = {name: p.grad.clone() for name, p in trainer.policy.named_parameters()}
    return found, dict(zip(TOTALS, totals.tolist(), strict=True))


def test_packed_and_single_episodes_and_the_loop_give_one_loss_and_one_gradient(batch):
    old_t = drifted(batch)
    packed, packed_totals = gradients(make_trainer(), batch, old_t)
    single, single_totals = gradients(make_trainer(LearnerConfig(microbatch_tokens=64)), batch, old_t)

    causal_lm, total = tiny_model(), torch.tensor(0.0)
    advantage_t = token_advantages(batch, LearnerConfig()).advantages_t
    for e in range(len(batch)):
        start, end = batch.offsets[e], batch.offsets[e + 1]
        scores = causal_lm(torch.tensor(batch.token_ids_t[start:end][None].astype(np.int64))).logits[0].log_softmax(-1)
        for i in np.flatnonzero(batch.loss_mask_t[start:end]):
            t, a = start + i, float(advantage_t[start + i])
            ratio = (scores[i - 1, batch.token_ids_t[t]] - old_t[t]).exp()
            surrogate = torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a)
            weight = min(math.exp(old_t[t] - batch.behaviour_t[t]), 2.0)
            total = total - weight * (surrogate.clamp(min=3 * a) if a < 0 else surrogate)
    loss = total / batch.loss_mask_t.sum()
    loss.backward()
    assert packed_totals["clip_low"] > 0, "the example must exercise the clip"
    assert packed_totals["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert packed_totals == pytest.approx(single_totals, rel=1e-4, abs=1e-5)
    for name, parameter in causal_lm.named_parameters():
        np.testing.assert_allclose(packed[f"causal_lm.{name}"], parameter.grad, atol=1e-5)
        np.testing.assert_allclose(packed[f"causal_lm.{name}"], single[f"causal_lm.{name}"], atol=1e-5)


@pytest.mark.parametrize("algorithm", EVERY)
def test_packing_changes_neither_loss_nor_gradient_of_any_algorithm(batch, algorithm):
    old_t = drifted(batch)
    whole, whole_totals = gradients(make_trainer(settings_of(algorithm)), batch, old_t)
    parts, parts_totals = gradients(make_trainer(settings_of(algorithm, microbatch_tokens=64)), batch, old_t)
    assert whole_totals == pytest.approx(parts_totals, rel=1e-4, abs=1e-5)
    assert any(gradient.any() for gradient in whole.values())
    for name, gradient in whole.items():
        np.testing.assert_allclose(parts[name], gradient, atol=1e-5)


def test_what_follows_the_last_trained_token_and_what_labels_a_document_never_reach_the_gradient(tables):
    """A document token is context, never a target: as the last token of a row, where it is a label only, it changes nothing."""

    def ending_in_document(token):
        batch = read_batch(
            [
                with_rows(tables, lambda row: {
                    "token_ids": [*row["token_ids"], token],
                    "loss_mask": [*row["loss_mask"], False],
                    "logprobs": [*row["logprobs"], 0.0],
                })
            ]
        )  # fmt: skip
        return gradients(make_trainer(), batch)[0]

    one, other = ending_in_document(3), ending_in_document(60)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(gradient.any() for gradient in one.values())


def test_scores_exist_only_at_positions_that_predict_trained_tokens(batch, monkeypatch):
    """Each output-layer row belongs to a token with loss: no document label can have a gradient, because it has no logit."""
    import learner.model as module

    seen = []
    real = module.chosen_logprobs
    monkeypatch.setattr(module, "chosen_logprobs", lambda hidden, *rest: seen.append(len(hidden)) or real(hidden, *rest))
    policy = make_policy(tiny_model(), LearnerConfig())
    for packed in plan_micro_batches(batch.lengths, np.arange(len(batch)), 1, 128)[0]:
        policy(flatten(batch, packed))
    assert sum(seen) == batch.loss_mask_t.sum() < len(batch.token_ids_t)


def test_one_episode_says_nothing_to_its_neighbours_in_the_row(batch):
    policy = make_policy(tiny_model(), LearnerConfig())
    together = flatten(batch, Bin(np.arange(len(batch))))
    changed = dataclasses.replace(together, token_ids_t=together.token_ids_t.clone())
    first = together.layout.lengths[0]
    changed.token_ids_t[:first] = (changed.token_ids_t[:first] + 1) % 64
    others = together.episode_n > 0
    assert torch.equal(policy(together)[0][others], policy(changed)[0][others])


@pytest.mark.parametrize("algorithm", EVERY)
def test_every_algorithm_moves_the_policy_towards_the_better_episode(algorithm):
    """One group of two, one right and one wrong: after a few steps the right one is likelier, relative to the wrong one."""
    batch = read_batch([sample_group(tiny_model(), 5, n=2)])
    batch = dataclasses.replace(batch, reward_e=np.float32([1, -1]))
    trainer = make_trainer(settings_of(algorithm, minibatches=1, max_mismatch=100.0))

    def preference():
        scored_t = trainer._sweep(batch, trainer.policy).numpy()
        means = np.add.reduceat(scored_t, batch.offsets[:-1]) / np.add.reduceat(
            batch.loss_mask_t, batch.offsets[:-1], dtype=float
        )
        return means[0] if algorithm == "sft" else means[0] - means[1]

    before = preference()
    for step in range(4):
        metrics = trainer.step(batch, step=step, current=FIRST, learning_rate=5e-3)
        assert metrics["optimizer_steps"] == 1
    assert preference() > before + 0.01


def test_a_step_raises_the_reward_and_measures_no_mismatch_on_its_own_samples():
    causal_lm = tiny_model()
    config = LearnerConfig()
    trainer = PolicyTrainer(make_policy(causal_lm, config), config)
    rewards = []
    sampler = tiny_model()
    for step in range(8):
        version = WeightVersion(1, step)
        sampler.load_state_dict(causal_lm.state_dict())
        fresh = read_batch([sample_group(sampler, 100 * step + group, n=6, version=version) for group in range(5)])
        metrics = trainer.step(fresh, step=step, current=version, learning_rate=2e-2)
        rewards.append(metrics["reward_mean"])
        assert metrics["mismatch_mean"] < 1e-5
        assert metrics["mismatch_tokens"] == metrics["model_tokens"]
        assert metrics["effective_samples"] == pytest.approx(1, abs=1e-4)
        assert metrics["optimizer_steps"] == 2
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15


@pytest.mark.parametrize("minibatches", [1, 2])
def test_mismatch_is_measured_only_on_the_current_version_and_ends_the_run(batch, minibatches):
    config = LearnerConfig(minibatches=minibatches)
    spoilt = dataclasses.replace(batch, behaviour_t=np.where(batch.loss_mask_t, batch.behaviour_t - 0.5, 0).astype(np.float32))
    trainer = make_trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    with pytest.raises(EngineMismatch, match=r"differ by 0\.5 .* above learner.max_mismatch = 0\.01"):
        trainer.step(spoilt, step=0, **CURRENT)
    assert all(torch.equal(p, before[name]) for name, p in trainer.policy.named_parameters()), "it must end before any update"
    later = {**CURRENT, "current": WeightVersion(1, 2)}
    metrics = make_trainer(config).step(spoilt, step=0, **later)
    assert metrics["mismatch_tokens"] == 0
    assert metrics["drift_mean"] == pytest.approx(0.5, abs=1e-3)
    assert metrics["age_max"] == 2
    assert metrics["importance_mean"] == pytest.approx(math.exp(0.5), abs=1e-3)


def test_gradients_that_are_not_finite_are_skipped_counted_and_end_the_run_after_some(batch):
    trainer = make_trainer(LearnerConfig(minibatches=1, max_skipped=3))
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    hook = trainer.policy.causal_lm.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    for step in range(2):
        metrics = trainer.step(batch, step=step, **CURRENT)
        assert metrics["skipped_updates"] == 1
        assert metrics["optimizer_steps"] == 0
    assert all(torch.equal(p, before[name]) for name, p in trainer.policy.named_parameters())
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        trainer.step(batch, step=2, **CURRENT)
    hook.remove()
    assert trainer.step(batch, step=3, **CURRENT)["skipped_updates"] == 0
    assert trainer.skipped_in_a_row == 0


def test_a_group_with_a_reward_that_is_not_a_number_is_left_out_whole_and_counted(batch):
    rewards = batch.reward_e.copy()
    rewards[5] = np.nan
    spoilt = dataclasses.replace(batch, reward_e=rewards)
    metrics = make_trainer().step(spoilt, step=0, **CURRENT)
    assert metrics["groups_not_finite"] == 1
    assert metrics["episodes_trained"] == len(batch) - 4
    assert all(math.isfinite(value) for value in metrics.values())
    trainer, without = make_trainer(), make_trainer()
    trainer.step(spoilt, step=0, **CURRENT)
    without.step(batch.select(np.flatnonzero(batch.group_e != batch.group_e[5])), step=0, **CURRENT)
    for one, other in zip(trainer.policy.parameters(), without.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_groups_of_equal_rewards_are_dropped_or_kept_as_configured():
    causal_lm = tiny_model()
    equal = [sample_group(causal_lm, group, equal_rewards=True) for group in (0, 1)]
    mixed = read_batch([*equal, sample_group(causal_lm, 2)])
    dropped = make_trainer().step(mixed, step=0, **CURRENT)
    assert dropped["groups_uninformative"] == 2
    assert dropped["episodes_trained"] == 4
    assert dropped["episodes"] == 12
    kept = make_trainer(LearnerConfig(zero_advantage="keep")).step(mixed, step=0, **CURRENT)
    assert kept["episodes_trained"] == 12
    nothing = make_trainer().step(read_batch(equal), step=0, **CURRENT)
    assert nothing["optimizer_steps"] == 0
    assert nothing["grad_norm"] == 0


def test_reference_and_entropy_terms_enter_the_loss(batch):
    config = LearnerConfig(minibatches=1, kl_coefficient=0.5, entropy_coefficient=0.1)
    with pytest.raises(ValueError, match="needs a reference"):
        make_trainer(config)
    metrics = make_trainer(config, reference=make_policy(tiny_model(seed=1), config)).step(batch, step=0, **CURRENT)
    plain = make_trainer(LearnerConfig(minibatches=1)).step(batch, step=0, **CURRENT)
    assert metrics["kl_reference"] > 0
    expected = plain["loss"] + 0.5 * metrics["kl_reference"] - 0.1 * metrics["entropy"]
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)


def test_the_critic_learns_to_foresee_returns(batch):
    """The policy stands still, so that the same episodes stay its own; what a question pays depends on the question alone."""
    config = LearnerConfig(algorithm="ppo", minibatches=1, critic={"learning_rate": 1e-2, "value_clip": None})
    trainer, easy = make_trainer(config), dataclasses.replace(batch, reward_e=(batch.group_e % 2).astype(np.float32))
    told = [trainer.step(easy, step=step, current=FIRST, learning_rate=0.0) for step in range(25)]
    assert told[-1]["value_loss"] < 0.3 * told[0]["value_loss"]
    assert told[0]["value_explained"] == 0
    assert told[-1]["value_explained"] > 0.5


def test_an_algorithm_with_a_critic_is_refused_without_one():
    config = LearnerConfig(algorithm="ppo")
    with pytest.raises(ValueError, match="needs a critic"):
        PolicyTrainer(make_policy(tiny_model(), config), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"token_ids": [*row["token_ids"][:-1], 64]}, "token ids from 0 to 64, .* vocabulary of 64"),
        (
            lambda row: (
                {name: row[name] * 40 for name in ("token_ids", "loss_mask", "logprobs")}
                | {"loss_mask": [False] * 40 * len(row["token_ids"])}
            ),
            "passes the model's context of 256",
        ),
    ],
)
def test_episodes_that_this_model_cannot_have_sampled_are_refused(tables, change, message):
    foreign = read_batch([with_rows(tables, change)])
    with pytest.raises(ValueError, match=message):
        make_trainer().step(foreign, step=0, **CURRENT)


def test_process_rewards_reach_the_turn_that_earned_them(tables):
    paid = with_rows(tables, lambda row: {"turn_rewards": [{"turn": 1, "name": "relevance", "value": 0.5}]})
    batch = read_batch([paid])
    for e in range(len(batch)):
        own = slice(batch.offsets[e], batch.offsets[e + 1])
        at = np.flatnonzero(batch.process_t[own])
        assert at.tolist() == [np.flatnonzero(batch.turn_t[own] == 1)[-1]]
    with pytest.raises(ValueError, match=r"a process reward for turn 7, which has no tokens"):
        read_batch([with_rows(tables, lambda row: {"turn_rewards": [{"turn": 7, "name": "x", "value": 1.0}]})])
