"""Arrow rows as flat arrays. `_t` counts the tokens of all episodes one after another, `_e` the episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trajectories.schema import WeightVersion

COLUMNS = ("group_id", "episode_id", "token_ids", "loss_mask", "logprobs", "versions", "reward", "temperature")
Scalar = TypeVar("Scalar", bound=np.generic)
NO_VERSION = -1  # of a token that no engine sampled


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """Episodes as the learner reads them; numeric columns are views into Arrow memory wherever one table holds all rows."""

    offsets: NDArray[np.int64]  # [E + 1]: episode e owns tokens offsets[e] to offsets[e + 1]
    token_ids_t: NDArray[np.int32]
    loss_mask_t: NDArray[np.bool_]
    behaviour_t: NDArray[np.float32]  # log-probability that the engine sampled the token with
    generation_t: NDArray[np.int32]
    number_t: NDArray[np.int32]
    reward_e: NDArray[np.float32]
    temperature_e: NDArray[np.float32]
    group_e: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def sampled_by(self, version: WeightVersion) -> NDArray[np.bool_]:
        """Which tokens were sampled under exactly this version."""
        return (self.generation_t == version.generation) & (self.number_t == version.number)

    def per_token(self, values_e: NDArray[Scalar]) -> NDArray[Scalar]:
        """One value per episode, repeated for each of its tokens."""
        return np.repeat(values_e, self.lengths)


def read_batch(tables: list[pa.Table]) -> EpisodeBatch:
    """Whole groups, one or more per table, as one batch; rows that could not be trained on raise with their episode id."""
    table = pa.concat_tables([table.select(COLUMNS) for table in tables]).combine_chunks()
    if not table.num_rows:
        raise ValueError(f"{len(tables)} tables hold no episode: the learner must be given at least one group")
    for name in COLUMNS:
        if table[name].null_count:
            raise ValueError(
                f"column {name} has {table[name].null_count} nulls: rows must come from trajectories.schema.to_table"
            )
    offsets, token_ids_t = _lists(table, "token_ids")
    loss_mask_t = _aligned(table, "loss_mask", offsets)
    generation_t, number_t = _version_per_token(table, offsets)
    batch = EpisodeBatch(
        offsets=offsets,
        token_ids_t=token_ids_t,
        loss_mask_t=loss_mask_t,
        behaviour_t=_aligned(table, "logprobs", offsets),
        generation_t=generation_t,
        number_t=number_t,
        reward_e=_array(table, "reward").to_numpy(zero_copy_only=False),
        temperature_e=_array(table, "temperature").to_numpy(zero_copy_only=False),
        group_e=_array(table, "group_id").dictionary_encode().indices.to_numpy().astype(np.int64),
    )
    _refuse_untrainable(batch, table)
    return batch


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _lists(table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray]:
    """Row offsets and flat values; `flatten` respects a slice's bounds where `values` would not."""
    lists = _array(table, name)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten().to_numpy(zero_copy_only=False)


def _aligned(table: pa.Table, name: str, offsets: NDArray[np.int64]) -> NDArray:
    own_offsets, values = _lists(table, name)
    differing = np.flatnonzero(np.diff(own_offsets) != np.diff(offsets))
    if len(differing):
        raise ValueError(f"episode {table['episode_id'][differing[0]]}: {name} is not as long as token_ids")
    return values


def _version_per_token(table: pa.Table, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    lists = _array(table, "versions")
    spans = lists.flatten()
    episode_s = np.repeat(np.arange(len(offsets) - 1), np.diff(lists.offsets.to_numpy()))
    start_s, end_s, generation_s, number_s = (
        spans.field(name).to_numpy(zero_copy_only=False) for name in ("start", "end", "generation", "number")
    )
    length_s = (end_s - start_s).astype(np.int64)
    if len(spans) and (start_s.min() < 0 or length_s.min() < 0 or (end_s > np.diff(offsets)[episode_s]).any()):
        raise ValueError("a version span leaves its episode: rows must pass trajectories.schema.check")
    first_s = offsets[episode_s] + start_s
    tokens = np.repeat(first_s - (np.cumsum(length_s) - length_s), length_s) + np.arange(length_s.sum())
    generation_t, number_t = (np.full(offsets[-1], NO_VERSION, np.int32) for _ in range(2))
    generation_t[tokens] = np.repeat(generation_s, length_s)
    number_t[tokens] = np.repeat(number_s, length_s)
    return generation_t, number_t


def _refuse_untrainable(batch: EpisodeBatch, table: pa.Table) -> None:
    def refuse(episode: int, why: str) -> None:
        raise ValueError(f"episode {table['episode_id'][episode]}: {why}")

    lengths = batch.lengths
    if lengths.min() == 0:
        refuse(int(lengths.argmin()), "it has no tokens")
    if (first := np.flatnonzero(batch.loss_mask_t[batch.offsets[:-1]])).size:
        refuse(int(first[0]), "its first token carries loss, but nothing comes before it that could predict it")
    broken = ~np.isfinite(batch.behaviour_t) | (batch.loss_mask_t & (batch.number_t == NO_VERSION))
    if broken.any():
        episode = int(np.searchsorted(batch.offsets, broken.argmax(), side="right")) - 1
        refuse(episode, "a trained token has no weight version or its log-probability is not finite")
    if not np.isfinite(batch.reward_e).all():
        refuse(int((~np.isfinite(batch.reward_e)).argmax()), "its reward is not finite")
