"""Packing: every episode once, within the budget, alike for all ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.batch import read_batch
from learner.packing import Bin, flatten, plan_micro_batches, split_groups
from tests.learner_episodes import sample_group, tiny_model


@given(st.lists(st.integers(1, 200), min_size=1, max_size=80), st.integers(1, 5), st.integers(64, 600))
def test_every_episode_is_planned_once_within_the_budget_and_no_rank_is_without_work(lengths, ranks, budget):
    lengths = np.array(lengths)
    rows = np.arange(len(lengths))[::-1].copy()
    plan = plan_micro_batches(lengths, rows, ranks, budget)
    weighed = [episode for rank in plan for packed in rank if packed.weight for episode in packed.episodes.tolist()]
    assert sorted(weighed) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1
    assert len(plan[0]) > 0
    for packed in (packed for rank in plan for packed in rank):
        assert lengths[packed.episodes].sum() <= budget or len(packed.episodes) == 1
        assert (np.diff(lengths[packed.episodes]) <= 0).all(), "longest first, so that neighbours share a rectangle"


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_have_work_alike_and_bins_are_full(ranks):
    lengths = np.random.default_rng(0).lognormal(4.5, 0.5, 512).astype(int) + 20
    plan = plan_micro_batches(lengths, np.arange(512), ranks, budget=4096)
    loads = np.array([[lengths[packed.episodes].sum() * packed.weight for packed in rank] for rank in plan])
    assert loads.sum(1).max() <= 1.01 * loads.sum(1).mean()
    assert loads.size <= np.ceil(lengths.sum() / 4096 / ranks) * ranks + ranks


def test_fewer_episodes_than_ranks_are_repeated_without_weight():
    plan = plan_micro_batches(np.array([9, 4]), np.arange(2), ranks=3, budget=64)
    assert [[(packed.episodes.tolist(), packed.weight) for packed in rank] for rank in plan] == [
        [([0], 1.0)],
        [([1], 1.0)],
        [([1], 0.0)],
    ]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 5))
def test_minibatches_hold_whole_groups_and_lose_no_row(groups, parts, seed):
    group_e = np.array(groups)
    split = split_groups(group_e, np.arange(len(groups)), parts, seed)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(groups)))
    assert all(len(part) for part in split)
    assert len(split) == min(parts, len(set(groups)))
    homes = [set(group_e[part]) for part in split]
    assert sum(len(home) for home in homes) == len(set(groups))


def test_a_flat_row_is_its_episodes_one_after_another():
    batch = read_batch([sample_group(tiny_model(), group) for group in (0, 1)])
    packed = Bin(np.array([5, 0, 3]))
    micro = flatten(batch, packed)
    spans = [np.arange(batch.offsets[e], batch.offsets[e + 1]) for e in packed.episodes]
    flat_t = np.concatenate(spans)
    assert micro.token_ids_t.tolist() == batch.token_ids_t[flat_t].tolist()
    assert micro.position_ids_t.tolist() == [i for span in spans for i in range(len(span))]
    assert micro.flat_n.tolist() == [t for t in flat_t if batch.loss_mask_t[t]]
    assert flat_t[micro.chosen_n].tolist() == micro.flat_n.tolist()
    assert micro.layout.boundaries.tolist() == [0, *np.cumsum([len(span) for span in spans])]
    assert [np.isin(t, spans[e]) for t, e in zip(micro.flat_n, micro.episode_n, strict=True)] == [True] * len(micro.flat_n)


def test_selected_episodes_keep_all_that_belongs_to_them():
    batch = read_batch([sample_group(tiny_model(), group) for group in (0, 1)])
    rows = np.array([6, 1, 2])
    part = batch.select(rows)
    assert part.reward_e.tolist() == batch.reward_e[rows].tolist()
    for i, e in enumerate(rows):
        own, source = slice(*part.offsets[i : i + 2]), slice(*batch.offsets[e : e + 2])
        for name in ("token_ids_t", "loss_mask_t", "behaviour_t", "number_t", "turn_t", "process_t"):
            assert getattr(part, name)[own].tolist() == getattr(batch, name)[source].tolist()
    assert not len(batch.select(np.array([], np.int64)))
