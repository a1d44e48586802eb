"""Episodes into flat micro-batches, spread over ranks. Pure and deterministic: each rank computes the whole plan and takes its part.

A micro-batch is one row of tokens, episode after episode, without padding: every layer but attention works on real tokens only,
and attention (learner/attention.py) never looks from one episode into another.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.attention import Layout
from learner.batch import EpisodeBatch


@dataclass(frozen=True, slots=True)
class Bin:
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


def plan_micro_batches(lengths: NDArray[np.int64], rows: NDArray[np.int64], ranks: int, budget: int) -> list[list[Bin]]:
    """For every rank the same number of micro-batches, each of at most `budget` tokens unless one episode alone is longer.

    First fit, longest first, says how many bins there must be; that number is rounded up to the ranks, and the episodes are dealt
    again, longest first into the emptiest bin, so that bins are alike. Where a dealt bin would pass the budget, first fit's bins
    stand and the fullest goes to the rank with the least. A rank without work repeats the shortest episode with weight 0,
    because FSDP's collectives need every rank in every pass.

    Example:
        >>> plan = plan_micro_batches(np.array([5, 3, 2]), np.arange(3), ranks=2, budget=8)
        >>> [[(packed.episodes.tolist(), packed.weight) for packed in rank] for rank in plan]
        [[([0], 1.0)], [([1, 2], 1.0)]]
    """
    if not len(rows):
        return [[] for _ in range(ranks)]
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")].tolist()
    fitted = _first_fit(lengths, longest_first, budget)
    count = -(-len(fitted) // ranks) * ranks
    dealt = _deal(lengths, longest_first, count)
    fits = all(len(members) == 1 or lengths[members].sum() <= budget for members in dealt if members)
    bins = sorted(filter(None, dealt if fits else fitted), key=lambda members: -int(lengths[members].sum()))
    plan: list[list[Bin]] = [[] for _ in range(ranks)]
    load = [(0, 0, rank) for rank in range(ranks)]  # passes first: every rank runs the same number of them
    for members in bins:
        passes, tokens, rank = heapq.heappop(load)
        plan[rank].append(Bin(np.array(members)))
        heapq.heappush(load, (passes + 1, tokens + int(lengths[members].sum()), rank))
    passes = max(len(part) for part in plan)
    for part in plan:
        part += [Bin(np.array([longest_first[-1]]), weight=0.0)] * (passes - len(part))
    return plan


def _first_fit(lengths: NDArray[np.int64], longest_first: list[int], budget: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: dict[int, int] = {}  # of bins that may still take the shortest episode: full ones would be looked at again and again
    shortest = int(lengths[longest_first[-1]])
    for episode in longest_first:
        length = int(lengths[episode])
        index = next((i for i, free in room.items() if free >= length), len(bins))
        if index == len(bins):
            bins.append([])
        bins[index].append(episode)
        room[index] = room.get(index, budget) - length
        if room[index] < shortest:
            del room[index]
    return bins


def _deal(lengths: NDArray[np.int64], longest_first: list[int], count: int) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(count)]
    load = [(0, index) for index in range(count)]
    for episode in longest_first:
        tokens, index = heapq.heappop(load)
        bins[index].append(episode)
        heapq.heappush(load, (tokens + int(lengths[episode]), index))
    return bins


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass over T tokens. `_n` counts the chosen tokens, those that carry loss, in the order of the row."""

    token_ids_t: Tensor
    position_ids_t: Tensor
    layout: Layout
    chosen_n: Tensor  # where in the row
    flat_n: Tensor  # where in the batch's flat arrays
    episode_n: Tensor  # which episode of this micro-batch
    temperature_n: Tensor
    weight: float

    @property
    def episodes(self) -> int:
        return len(self.layout.lengths)


def flatten(batch: EpisodeBatch, packed: Bin, device: str | torch.device = "cpu") -> MicroBatch:
    """The arrays of one micro-batch."""
    lengths = batch.lengths[packed.episodes]
    ends = np.cumsum(lengths)
    positions_t = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    flat_t = positions_t + np.repeat(batch.offsets[packed.episodes], lengths)
    episode_t = np.repeat(np.arange(len(lengths)), lengths)
    chosen_n = np.flatnonzero(batch.loss_mask_t[flat_t])

    def tensor(values: NDArray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return MicroBatch(
        token_ids_t=tensor(batch.token_ids_t[flat_t].astype(np.int64)),
        position_ids_t=tensor(positions_t),
        layout=Layout.of(lengths, device),
        chosen_n=tensor(chosen_n),
        flat_n=tensor(flat_t[chosen_n]),
        episode_n=tensor(episode_t[chosen_n]),
        temperature_n=tensor(batch.temperature_e[packed.episodes][episode_t[chosen_n]]),
        weight=packed.weight,
    )
