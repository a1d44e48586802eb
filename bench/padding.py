"""The same rows padded: what packing is compared with."""

from __future__ import annotations

import numpy as np
import torch

from learner.attention import Layout
from learner.batch import EpisodeBatch
from learner.packing import MicroBatch


def padded(batch: EpisodeBatch, budget: int) -> list[MicroBatch]:
    """Rows in the order in which they arrived, each padded to the longest of the step, as many a pass as the budget allows.

    A padded row is an episode of its own to attention, right-padded, so that no real token sees the padding.
    """
    longest = int(batch.lengths.max())
    rows = max(1, budget // longest)
    return [_pad(batch, np.arange(first, min(first + rows, len(batch))), longest) for first in range(0, len(batch), rows)]


def _pad(batch: EpisodeBatch, episodes: np.ndarray, longest: int) -> MicroBatch:
    columns = np.arange(longest)
    inside_bl = columns < batch.lengths[episodes][:, None]
    flat_bl = np.where(inside_bl, batch.offsets[episodes][:, None] + columns, 0)
    chosen_bl = inside_bl & batch.loss_mask_t[flat_bl]
    chosen_n = np.flatnonzero(chosen_bl)
    episode_n = chosen_n // longest
    return MicroBatch(
        token_ids_t=torch.from_numpy(np.where(inside_bl, batch.token_ids_t[flat_bl], 0).astype(np.int64).ravel()),
        position_ids_t=torch.from_numpy(np.tile(columns, len(episodes))),
        layout=Layout.of(np.full(len(episodes), longest)),
        chosen_n=torch.from_numpy(chosen_n),
        flat_n=torch.from_numpy(flat_bl[chosen_bl]),
        episode_n=torch.from_numpy(episode_n),
        temperature_n=torch.from_numpy(batch.temperature_e[episodes][episode_n]),
        weight=1.0,
    )
