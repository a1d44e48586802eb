"""Episodes into micro-batches, spread over ranks. Pure and deterministic: each rank computes the whole plan and takes its part.

Rows are sorted by length and padded on the right: under causal attention no real token sees the padding, so no mask is needed
and the fused causal kernel runs. A flat row with a block-diagonal mask costs attention quadratic in the whole row: on one CPU
thread, 27k tokens in episodes of 60–150, forward and backward took 1.3 s padded at 8k a pass and 5.5 s in flat rows of 4k.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batch import EpisodeBatch


@dataclass(frozen=True, slots=True)
class Rows:
    """The episodes of one forward pass, longest first. Weight 0: a copy that only keeps the ranks' collectives in step."""

    episodes: NDArray[np.int64]
    weight: float = 1.0


def split_groups(group_e: NDArray[np.int64], rows: NDArray[np.int64], parts: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows into at most `parts` minibatches of whole groups, shuffled: groups arrive in the order in which they finished.

    Example:
        >>> [part.tolist() for part in split_groups(np.array([0, 0, 1, 1]), np.arange(4), 2, seed=0)]
        [[0, 1], [2, 3]]
    """
    groups = np.random.default_rng(seed).permutation(np.unique(group_e[rows]))
    parts = min(parts, len(groups))
    return [rows[np.isin(group_e[rows], chosen)] for chosen in np.array_split(groups, parts)] if parts else []


def plan_micro_batches(lengths: NDArray[np.int64], rows: NDArray[np.int64], ranks: int, budget: int) -> list[list[Rows]]:
    """For every rank the same number of micro-batches, each of at most `budget` padded tokens unless one row alone is longer.

    Longest rows first, each to the rank with the fewest tokens so far; a rank with less to do repeats its shortest row with
    weight 0, because FSDP's collectives need every rank in every pass.

    Example:
        >>> plan = plan_micro_batches(np.array([5, 3, 2]), np.arange(3), ranks=2, budget=8)
        >>> [[(batch.episodes.tolist(), batch.weight) for batch in rank] for rank in plan]
        [[([0], 1.0)], [([1, 2], 1.0)]]
    """
    if not len(rows):
        return [[] for _ in range(ranks)]
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    assigned: list[list[int]] = [[] for _ in range(ranks)]
    load = [(0, rank) for rank in range(ranks)]
    for episode in longest_first:
        tokens, rank = heapq.heappop(load)
        assigned[rank].append(int(episode))
        heapq.heappush(load, (tokens + int(lengths[episode]), rank))
    plan = [_cut(lengths, episodes, budget) for episodes in assigned]
    passes = max(len(batches) for batches in plan)
    for batches, episodes in zip(plan, assigned, strict=True):
        shortest = episodes[-1] if episodes else int(longest_first[-1])
        batches += [Rows(np.array([shortest]), weight=0.0)] * (passes - len(batches))
    return plan


def _cut(lengths: NDArray[np.int64], longest_first: list[int], budget: int) -> list[Rows]:
    cuts: list[list[int]] = []
    for episode in longest_first:
        if cuts and (len(cuts[-1]) + 1) * lengths[cuts[-1][0]] <= budget:
            cuts[-1].append(episode)
        else:
            cuts.append([episode])
    return [Rows(np.array(cut)) for cut in cuts]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass: `[B, L]` right-padded ids, which of them carry loss, and where each of those stands in flat arrays."""

    token_ids_bl: Tensor
    loss_mask_bl: Tensor
    flat_n: Tensor  # index into any `_t` array of the n chosen tokens, in the row-major order of loss_mask_bl
    weight: float


def pad(batch: EpisodeBatch, rows: Rows, device: str | torch.device = "cpu") -> MicroBatch:
    """The arrays of one micro-batch. Padding is token 0 without loss."""
    starts, lengths = batch.offsets[rows.episodes], batch.lengths[rows.episodes]
    columns = np.arange(lengths.max())
    inside_bl = columns < lengths[:, None]
    flat_bl = np.where(inside_bl, starts[:, None] + columns, 0)
    token_ids_bl = np.where(inside_bl, batch.token_ids_t[flat_bl], 0)
    loss_mask_bl = inside_bl & batch.loss_mask_t[flat_bl]
    return MicroBatch(
        torch.from_numpy(token_ids_bl.astype(np.int64)).to(device),
        torch.from_numpy(loss_mask_bl).to(device),
        torch.from_numpy(flat_bl[loss_mask_bl]).to(device),
        rows.weight,
    )
