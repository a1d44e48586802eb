"""Advantages, packing and the mailbox: pure objects under random input."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from learner.advantages import group_advantages
from learner.config import LearnerConfig
from learner.exchange import Mailbox, Reply
from learner.messages import ResetOptimizer, Stop
from learner.packing import plan_micro_batches, split_groups

rewards_and_groups = st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(0, 5)), min_size=1, max_size=60).map(
    lambda pairs: (np.float32([r for r, _ in pairs]), np.unique([g for _, g in pairs], return_inverse=True)[1])
)


@given(rewards_and_groups)
def test_advantages_are_centred_scaled_and_zero_where_rewards_are_equal(pairs):
    rewards_e, group_e = pairs
    advantages_e, informative_e = group_advantages(rewards_e, group_e, 1e-6)
    assert np.isfinite(advantages_e).all()
    for group in np.unique(group_e):
        rewards, advantages = rewards_e[group_e == group].astype(np.float64), advantages_e[group_e == group]
        if len(set(rewards.tolist())) == 1:
            assert not advantages.any()
            assert not informative_e[group_e == group].any()
        else:
            assert informative_e[group_e == group].all()
            np.testing.assert_allclose(advantages, (rewards - rewards.mean()) / (rewards.std() + 1e-6), rtol=1e-4, atol=1e-4)
            assert abs(advantages.sum()) < 1e-3
            assert advantages.std() <= 1 + 1e-4


def test_equal_rewards_that_no_float_can_average_have_no_advantage():
    assert not group_advantages(np.float32([0.1] * 7), np.zeros(7, np.int64), 1e-12).advantages_e.any()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=80), st.integers(1, 5), st.integers(64, 600))
def test_every_episode_is_planned_once_within_the_budget_and_no_rank_is_without_work(lengths, ranks, budget):
    lengths = np.array(lengths)
    rows = np.arange(len(lengths))[::-1].copy()
    plan = plan_micro_batches(lengths, rows, ranks, budget)
    weighed = [episode for rank in plan for batch in rank if batch.weight for episode in batch.episodes.tolist()]
    assert sorted(weighed) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1
    assert len(plan[0]) > 0
    for batch in (batch for rank in plan for batch in rank):
        assert len(batch.episodes) * lengths[batch.episodes].max() <= budget or len(batch.episodes) == 1
    tokens = [sum(int(lengths[batch.episodes].sum()) for batch in rank if batch.weight) for rank in plan]
    assert max(tokens) - min(tokens) <= lengths.max()  # longest first: no rank is ahead by more than one episode


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 5))
def test_minibatches_hold_whole_groups_and_lose_no_row(groups, parts, seed):
    group_e = np.array(groups)
    split = split_groups(group_e, np.arange(len(groups)), parts, seed)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(groups)))
    assert all(len(part) for part in split)
    assert len(split) == min(parts, len(set(groups)))
    homes = [set(group_e[part]) for part in split]
    assert sum(len(home) for home in homes) == len(set(groups))


def test_mailbox_gives_each_rank_each_order_once_and_answers_when_all_are_through():
    async def scenario():
        mailbox = Mailbox(ranks=2)
        number = await mailbox.put(ResetOptimizer())
        assert await mailbox.next_order(0, 1) == (1, ResetOptimizer())
        assert await mailbox.next_order(0, 0.01) is None
        await mailbox.post(0, number, None)
        with pytest.raises(RuntimeError, match="still open"):
            await mailbox.put(Stop())
        assert "from ranks [1]" in (await mailbox.reply(number, 0.01)).failure
        assert await mailbox.next_order(1, 1) == (1, ResetOptimizer())
        await mailbox.post(1, number, None)
        assert await mailbox.reply(number, 1) == Reply()
        waiting = asyncio.ensure_future(mailbox.reply(await mailbox.put(Stop()), 5))
        await mailbox.fail(1, "ValueError: first")
        await mailbox.fail(0, "ConnectionError: consequence")
        assert (await waiting).failure == "learner worker 1 of 2: ValueError: first"
        with pytest.raises(RuntimeError, match="worker 1 of 2: ValueError: first"):
            await mailbox.put(ResetOptimizer())

    asyncio.run(scenario())


@pytest.mark.parametrize("wrong", [{"clip_high": 0.2}, {"zero_advantage": "keep"}, {"kl_coefficient": 0.1}])
def test_dapo_refuses_settings_that_are_not_dapo(wrong):
    LearnerConfig(algorithm="dapo")
    with pytest.raises(ValidationError, match="dapo"):
        LearnerConfig(algorithm="dapo", **wrong)
