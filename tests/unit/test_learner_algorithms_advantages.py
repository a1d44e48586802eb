"""Advantages against loops that a reader checks at a glance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.advantages import discounted_sums, group_centred, group_normalised, leave_one_out, token_advantages, whitened
from learner.config import AlgorithmConfig
from tests.learner_batches import Turn, batch_of, batches

EPSILON = 1e-6


def config(advantage, **settings):
    surrogate = "likelihood" if advantage == "none" else None
    return AlgorithmConfig(advantage=advantage, surrogate=surrogate, **settings)


def chosen_of(batch, e):
    return [t for t in range(batch.offsets[e], batch.offsets[e + 1]) if batch.loss_mask_t[t]]


def totals(batch):
    return batch.reward_e.astype(float).tolist()


def others(batch, e):
    return [i for i in range(len(batch)) if batch.group_e[i] == batch.group_e[e]]


def loop_group(batch, rewards, e):
    group = [rewards[i] for i in others(batch, e)]
    return 0.0 if len(set(group)) == 1 else (rewards[e] - np.mean(group)) / (np.std(group) + EPSILON)


def loop_group_mean(batch, rewards, e):
    return rewards[e] - np.mean([rewards[i] for i in others(batch, e)])


def loop_leave_one_out(batch, rewards, e):
    rest = [rewards[i] for i in others(batch, e) if i != e]
    return rewards[e] - np.mean(rest) if rest else 0.0


def spread(batch, values_e):
    return np.where(batch.loss_mask_t, batch.per_token(np.array(values_e, np.float64)), 0)


@pytest.mark.parametrize(
    ("advantage", "loop"),
    [("group", loop_group), ("group_mean", loop_group_mean), ("leave_one_out", loop_leave_one_out)],
)
@settings(max_examples=50)
@given(batch=batches())
def test_comparing_estimators_equal_the_loop_and_are_exactly_zero_where_rewards_are_equal(advantage, loop, batch):
    found, rewards = token_advantages(batch, config(advantage)), totals(batch)
    expected = spread(batch, [loop(batch, rewards, e) for e in range(len(batch))])
    np.testing.assert_allclose(found.advantages_t, expected, atol=1e-5)
    equal = [len({rewards[i] for i in others(batch, e)}) == 1 for e in range(len(batch))]
    assert found.informative_e.tolist() == [not same for same in equal]
    assert not found.advantages_t[batch.per_token(np.array(equal))].any()
    assert found.returns_t is None


@given(rewards=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30))
def test_group_advantages_of_any_rewards_are_centred_and_of_deviation_one_at_most(rewards):
    advantages = group_normalised(np.float32(rewards), np.zeros(len(rewards), np.int64), EPSILON)
    assert abs(advantages.sum()) < 1e-6
    assert advantages.std() <= 1 + 1e-9


def test_equal_rewards_that_no_float_can_average_have_no_advantage():
    for count in range(1, 30):
        rewards, together = np.full(count, 0.1), np.zeros(count, np.int64)
        assert not group_normalised(rewards, together, 1e-12).any()
        assert not group_centred(rewards, together).any()
        assert not leave_one_out(rewards, together).any()
        assert not whitened(rewards, 1e-12).any()
    assert any(np.full(count, 0.1).mean() != 0.1 for count in range(1, 30)), "or nothing was tried"


@pytest.mark.parametrize("baseline", [False, True])
@settings(max_examples=50)
@given(batch=batches(), seed=st.integers(0, 99))
def test_batch_whitens_what_is_still_to_come_over_all_tokens(baseline, batch, seed):
    penalty_t = np.random.default_rng(seed).normal(0, 0.1, len(batch.token_ids_t)).astype(np.float32)
    rewards = totals(batch)
    to_go = {}
    for e in range(len(batch)):
        start = loop_group_mean(batch, rewards, e) if baseline else rewards[e]
        for t in chosen_of(batch, e):
            to_go[t] = start - sum(float(penalty_t[k]) for k in chosen_of(batch, e) if k >= t)
    values = np.array(list(to_go.values()))
    found = token_advantages(batch, config("batch_baseline" if baseline else "batch"), penalty_t=penalty_t)
    expected = (values - values.mean()) / (values.std() + EPSILON) if len(values) > 1 else values * 0
    np.testing.assert_allclose(found.advantages_t[list(to_go)], expected, atol=1e-4)
    assert found.informative_e.all()
    assert not found.advantages_t[~batch.loss_mask_t].any()


def loop_turn(batch, discount):
    """Outcome and normalised process rewards of this turn and later ones, token by token."""
    sums = {}
    for e in range(len(batch)):
        for t in chosen_of(batch, e):
            sums[e, batch.turn_t[t]] = sums.get((e, batch.turn_t[t]), 0.0) + float(batch.process_t[t])
    expected = np.zeros(len(batch.token_ids_t))
    for e in range(len(batch)):
        group = [sums[key] for key in sums if batch.group_e[key[0]] == batch.group_e[e]]
        scale = 0.0 if len(set(group)) == 1 else 1 / (np.std(group) + EPSILON)
        for t in chosen_of(batch, e):
            later = [(j, value) for (owner, j), value in sums.items() if owner == e and j >= batch.turn_t[t]]
            expected[t] = loop_group(batch, batch.outcome_e, e)
            expected[t] += sum(discount ** (j - batch.turn_t[t]) * (value - np.mean(group)) * scale for j, value in later)
    return expected


@settings(max_examples=50)
@given(batch=batches(), discount=st.sampled_from([0.0, 0.5, 1.0]))
def test_turn_advantages_equal_the_loop(batch, discount):
    found = token_advantages(batch, config("turn", turn_discount=discount))
    np.testing.assert_allclose(found.advantages_t, loop_turn(batch, discount), atol=1e-5)
    assert not found.advantages_t[batch.per_token(~found.informative_e)].any()


def test_credit_goes_to_the_turn_that_earned_it_and_with_a_discount_to_those_before():
    """The first episode's second turn earns; all outcomes are equal, so nothing else tells the tokens apart."""
    episodes = [[Turn(2, 3), Turn(1, 2, process=1.0), Turn(2)], [Turn(1, 1), Turn(2, 1), Turn(1)]]
    batch = batch_of(episodes, [0.5, 0.5], [0, 0])

    def by_turn(discount):
        found = token_advantages(batch, config("turn", turn_discount=discount)).advantages_t
        return [set(found[(batch.turn_t == turn) & (np.arange(len(found)) < batch.offsets[1])].tolist()) for turn in range(3)]

    earned, plain = (1 - 1 / 6) / np.std([1, 0, 0, 0, 0, 0]), (0 - 1 / 6) / np.std([1, 0, 0, 0, 0, 0])
    for discount in (0.0, 0.5):
        first, second, third = by_turn(discount)
        assert len(first) == len(second) == len(third) == 1, "all tokens of a turn share its credit"
        expected_second = earned + discount * plain
        assert third.pop() == pytest.approx(plain, rel=1e-4)
        assert second.pop() == pytest.approx(expected_second, rel=1e-4)
        assert first.pop() == pytest.approx(plain + discount * expected_second, rel=1e-4)
    assert token_advantages(batch, config("turn")).informative_e.all()
    assert not token_advantages(batch_of(episodes[1:] * 2, [0.5, 0.5], [0, 0]), config("turn")).informative_e.any()


@given(
    sequences=st.lists(st.lists(st.floats(-10, 10), max_size=6), max_size=5),
    factor=st.floats(0, 1),
)
def test_discounted_sums_equal_the_loop_and_stay_within_their_sequence(sequences, factor):
    expected = [
        sum(factor**k * later for k, later in enumerate(values[n:])) for values in sequences for n in range(len(values))
    ]
    flat, lengths = (
        np.array([x for values in sequences for x in values]),
        np.array([len(values) for values in sequences], np.int64),
    )
    np.testing.assert_allclose(discounted_sums(flat, lengths, factor), expected, atol=1e-9)


def loop_gae(batch, values_t, penalty_t, gamma, lam, by_turn):
    """From the end of each episode, or turn, backwards over the chosen tokens alone."""
    advantages, returns = np.zeros((2, len(values_t)))
    for e in range(len(batch)):
        steps = chosen_of(batch, e)
        samples = (
            [[t for t in steps if batch.turn_t[t] == j] for j in sorted({batch.turn_t[t] for t in steps})]
            if by_turn
            else [steps]
        )
        for sample in samples:
            following, value_after = 0.0, 0.0
            for t in reversed(sample):
                reward = batch.process_t[t] - penalty_t[t] + (batch.outcome_e[e] if t == sample[-1] else 0.0)
                following = reward + gamma * value_after - values_t[t] + gamma * lam * following
                value_after = values_t[t]
                advantages[t], returns[t] = following, following + values_t[t]
    return advantages, returns


@pytest.mark.parametrize("horizon", ["episode", "turn"])
@settings(max_examples=50)
@given(batch=batches(), gamma=st.floats(0, 1), lam=st.floats(0, 1), seed=st.integers(0, 99))
def test_gae_equals_the_loop_and_never_reads_a_document(horizon, batch, gamma, lam, seed):
    values_t, penalty_t = np.random.default_rng(seed).normal(size=(2, len(batch.token_ids_t))).astype(np.float32)
    gae = config("gae", gae_gamma=gamma, gae_lambda=lam, horizon=horizon)
    found = token_advantages(batch, gae, values_t=values_t, penalty_t=penalty_t)
    advantages, returns = loop_gae(batch, values_t, penalty_t, gamma, lam, horizon == "turn")
    np.testing.assert_allclose(found.advantages_t, advantages, atol=1e-4)
    np.testing.assert_allclose(found.returns_t, returns, atol=1e-4)
    changed = np.where(batch.loss_mask_t, values_t, 1e9).astype(np.float32)
    again = token_advantages(batch, gae, values_t=changed, penalty_t=penalty_t)
    assert (again.advantages_t == found.advantages_t).all()


def test_every_turn_of_its_own_ends_with_the_outcome_and_what_it_earned():
    """R3-RAG's reward of a step; with λ = γ = 1 and no critic it is the advantage of all the step's tokens."""
    batch = batch_of([[Turn(2, 2, process=0.75), Turn(3, process=0.25)]], [2.0], [0])
    zeros = np.zeros(len(batch.token_ids_t), np.float32)
    found = token_advantages(batch, config("gae", horizon="turn"), values_t=zeros)
    assert found.advantages_t.tolist() == [0, 2.75, 2.75, 0, 0, 2.25, 2.25, 2.25]
    whole = token_advantages(batch, config("gae"), values_t=zeros)
    assert whole.advantages_t.tolist() == [0, 3, 3, 0, 0, 2.25, 2.25, 2.25]


def test_outcomes_that_are_equal_stay_equal_beside_turns_shares_that_no_float_can_hold():
    """0.1 + 0.2 − 0.2 is not 0.1 in 32 bits: dividing such a difference by its own deviation would make an advantage of 1."""
    batch = batch_of([[Turn(1, process=0.2)], [Turn(1, process=0.7)], [Turn(1)]], [0.1] * 3, [0] * 3)
    assert len(set(batch.outcome_e.tolist())) == 1
    assert (batch.outcome_e + np.array([0.2, 0.7, 0])).astype(np.float32).tolist() == batch.reward_e.tolist()


def test_a_reward_on_a_token_without_loss_is_earned_by_the_trained_token_before_it_or_the_first():
    turns = [[Turn(3, process=1.0), Turn(1)], [Turn(2, process=1.0)], [Turn(1, process=1.0), Turn(2)]]
    batch = batch_of(turns, [0.0] * 3, [0] * 3)
    batch.loss_mask_t[[3, 6, 7, 9]] = False  # the first turn's last token; the second episode whole; the third's first turn
    found = token_advantages(batch, config("gae"), values_t=np.zeros(12, np.float32))
    assert found.advantages_t.tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]


@given(batch=batches(min_episodes=2))
def test_whitening_gives_the_informative_tokens_mean_zero_and_deviation_one(batch):
    found = token_advantages(batch, config("group_mean", whiten=True))
    taught = batch.loss_mask_t & batch.per_token(found.informative_e)
    assert not found.advantages_t[~taught].any()
    if len(set(found.advantages_t[taught].tolist())) > 1:
        assert found.advantages_t[taught].mean() == pytest.approx(0, abs=1e-5)
        assert found.advantages_t[taught].std() == pytest.approx(1, abs=1e-4)


def test_likelihood_takes_all_tokens_alike_and_a_missing_critic_is_one_line():
    batch = batch_of([[Turn(2, 1)], [Turn(1)]], [1.0, 1.0], [0, 0])
    found = token_advantages(batch, AlgorithmConfig(algorithm="sft"))
    assert found.advantages_t.tolist() == batch.loss_mask_t.tolist()
    assert found.informative_e.all()
    with pytest.raises(ValueError, match="needs the values of a critic"):
        token_advantages(batch, AlgorithmConfig(algorithm="ppo"))
