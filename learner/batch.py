"""Arrow rows as flat arrays. `_t` counts the tokens of all episodes one after another, `_e` the episodes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trajectories.schema import Source, WeightVersion

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COLUMNS = (
    "group_id", "episode_id", "token_ids", "loss_mask", "logprobs", "segments", "versions", "reward", "turn_rewards", "temperature",
)  # fmt: skip
Scalar = TypeVar("Scalar", bound=np.generic)
NO_VERSION = -1  # of a token that no engine sampled
NO_TURN = -1  # of a token that the model did not write
OUTCOME_DIGITS = 5  # a reward of a few units in 32 bits is exact to about 6


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """Episodes as the learner reads them; numeric columns are views into Arrow memory wherever one table holds all rows."""

    offsets: NDArray[np.int64]  # [E + 1]: episode e owns tokens offsets[e] to offsets[e + 1]
    token_ids_t: NDArray[np.int32]
    loss_mask_t: NDArray[np.bool_]
    behaviour_t: NDArray[np.float32]  # log-probability that the engine sampled the token with
    generation_t: NDArray[np.int32]
    number_t: NDArray[np.int32]
    turn_t: NDArray[np.int32]  # the model's turn that a token belongs to
    process_t: NDArray[np.float32]  # a turn's process rewards, at its last token; 0 elsewhere
    reward_e: NDArray[np.float32]  # the whole: of the outcome and of all turns
    temperature_e: NDArray[np.float32]
    group_e: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.reward_e)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def outcome_e(self) -> NDArray[np.float64]:
        """The reward without its turns' shares; rounded, because parts in 32 bits do not add up and equals must stay equal."""
        whole_e = self.reward_e.astype(np.float64)
        if not self.process_t.any():
            return whole_e
        return (whole_e - np.add.reduceat(self.process_t.astype(np.float64), self.offsets[:-1])).round(OUTCOME_DIGITS)

    def sampled_by(self, version: WeightVersion) -> NDArray[np.bool_]:
        """Which tokens were sampled under exactly this version."""
        return (self.generation_t == version.generation) & (self.number_t == version.number)

    def per_token(self, values_e: NDArray[Scalar]) -> NDArray[Scalar]:
        """One value per episode, repeated for each of its tokens."""
        return np.repeat(values_e, self.lengths)

    def select(self, rows: NDArray[np.int64]) -> EpisodeBatch:
        """Some episodes, in the order of `rows`, as a batch of their own."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        values: dict[str, NDArray] = {"offsets": offsets}
        for field in fields(self)[1:]:
            values[field.name] = getattr(self, field.name)[tokens if field.name.endswith("_t") else rows]
        return EpisodeBatch(**values)


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
    segments = _Spans.of(table, "segments", offsets)
    turn_t = _turn_per_token(segments)
    batch = EpisodeBatch(
        offsets=offsets,
        token_ids_t=token_ids_t,
        loss_mask_t=loss_mask_t,
        behaviour_t=_aligned(table, "logprobs", offsets),
        generation_t=generation_t,
        number_t=number_t,
        turn_t=turn_t,
        process_t=_process_rewards(table, segments, turn_t, offsets),
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
    return offsets - offsets[0], _values(lists.flatten())


def _values(array: pa.Array) -> NDArray:
    if not pa.types.is_boolean(array.type) or not len(array) or array.null_count:
        return array.to_numpy(zero_copy_only=False)
    bits = np.frombuffer(array.buffers()[1], np.uint8)  # twenty times as fast as Arrow's own way from bits to bytes
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little").view(np.bool_)[array.offset :]


def _aligned(table: pa.Table, name: str, offsets: NDArray[np.int64]) -> NDArray:
    own_offsets, values = _lists(table, name)
    differing = np.flatnonzero(np.diff(own_offsets) != np.diff(offsets))
    if len(differing):
        raise ValueError(f"episode {table['episode_id'][differing[0]]}: {name} is not as long as token_ids")
    return values


@dataclass(frozen=True, slots=True)
class _Spans:
    """The spans of a column, one after another: `_s` counts them, and a start counts in the flat arrays."""

    fields: pa.StructArray
    episode_s: NDArray[np.int64]
    start_s: NDArray[np.int64]
    length_s: NDArray[np.int64]
    tokens: int

    @classmethod
    def of(cls, table: pa.Table, name: str, offsets: NDArray[np.int64]) -> _Spans:
        lists = _array(table, name)
        spans = lists.flatten()
        episode_s = np.repeat(np.arange(len(offsets) - 1), np.diff(lists.offsets.to_numpy()))
        start_s, end_s = (spans.field(edge).to_numpy(zero_copy_only=False) for edge in ("start", "end"))
        length_s = (end_s - start_s).astype(np.int64)
        if len(spans) and (start_s.min() < 0 or length_s.min() < 0 or (end_s > np.diff(offsets)[episode_s]).any()):
            raise ValueError(f"column {name}: a span leaves its episode: rows must pass trajectories.schema.check")
        return cls(spans, episode_s, offsets[episode_s] + start_s, length_s, int(offsets[-1]))

    def per_token(self, value_s: NDArray[np.int32], otherwise: int) -> NDArray[np.int32]:
        """Each span's value at its tokens; of spans that overlap, the last counts."""
        ends_s = self.start_s + self.length_s
        gap_s = self.start_s - np.concatenate([[0], ends_s[:-1]])
        if (gap_s >= 0).all():  # in order, as engines and protocol write them: one pass instead of a scatter
            values = np.stack([np.full_like(value_s, otherwise), value_s], axis=1).ravel()
            lengths = np.stack([gap_s, self.length_s], axis=1).ravel()
            rest = self.tokens - int(ends_s[-1] if len(ends_s) else 0)
            return np.repeat(np.append(values, np.int32(otherwise)), np.append(lengths, rest))
        value_t = np.full(self.tokens, otherwise, np.int32)
        for start, length, value in zip(self.start_s.tolist(), self.length_s.tolist(), value_s.tolist(), strict=True):
            value_t[start : start + length] = value
        return value_t


def _version_per_token(table: pa.Table, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    spans = _Spans.of(table, "versions", offsets)
    generation_s, number_s = (spans.fields.field(name).to_numpy(zero_copy_only=False) for name in ("generation", "number"))
    return spans.per_token(generation_s, NO_VERSION), spans.per_token(number_s, NO_VERSION)


def _turn_per_token(segments: _Spans) -> NDArray[np.int32]:
    from_model_s = pc.equal(segments.fields.field("source"), Source.MODEL.value).to_numpy(zero_copy_only=False)
    turn_s = segments.fields.field("turn").to_numpy(zero_copy_only=False)
    return segments.per_token(np.where(from_model_s, turn_s, np.int32(NO_TURN)), NO_TURN)


def _process_rewards(
    table: pa.Table, segments: _Spans, turn_t: NDArray[np.int32], offsets: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Each turn's rewards at its last token."""
    lists = _array(table, "turn_rewards")
    rewards = lists.flatten()
    process_t = np.zeros(offsets[-1], np.float32)
    if not len(rewards):
        return process_t
    episode_r = np.repeat(np.arange(len(offsets) - 1), np.diff(lists.offsets.to_numpy()))
    turn_r, value_r = (rewards.field(name).to_numpy(zero_copy_only=False) for name in ("turn", "value"))
    turns = int(turn_t.max(initial=NO_TURN)) + 1
    known_k, last_k = _last_tokens(segments, turn_t, offsets, turns)
    wanted_r = episode_r * turns + turn_r
    found_r = np.searchsorted(known_k, wanted_r)
    has_r = (turn_r >= 0) & (turn_r < turns) & (found_r < len(known_k))
    has_r[has_r] &= known_k[found_r[has_r]] == wanted_r[has_r]
    if not has_r.all():
        bad = int(has_r.argmin())
        raise ValueError(
            f"episode {table['episode_id'][episode_r[bad]]}: a process reward for turn {turn_r[bad]}, which has no tokens"
        )
    np.add.at(process_t, last_k[found_r], value_r)
    return process_t


def _last_tokens(
    segments: _Spans, turn_t: NDArray[np.int32], offsets: NDArray[np.int64], turns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each turn of each episode ends, by episode × turns + turn. A turn ends where a segment ends, or another begins."""
    ends = np.unique(np.concatenate([segments.start_s, segments.start_s + segments.length_s, offsets[1:]])) - 1
    ends = ends[ends >= 0]
    ends = ends[turn_t[ends] >= 0]
    keys = (np.searchsorted(offsets, ends, side="right") - 1) * turns + turn_t[ends]
    order = np.argsort(keys, kind="stable")
    is_last = np.append(np.diff(keys[order]) != 0, True)[: len(order)]
    return keys[order][is_last], ends[order][is_last]


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


def finite_groups(batch: EpisodeBatch) -> NDArray[np.bool_]:
    """Which episodes belong to a group whose rewards are all finite: a group is trained whole or not at all."""
    finite_e = np.isfinite(batch.reward_e) & np.isfinite(np.add.reduceat(batch.process_t, batch.offsets[:-1]))
    return ~np.isin(batch.group_e, batch.group_e[~finite_e])


def refuse_foreign(batch: EpisodeBatch, model: PretrainedConfig) -> None:
    """Episodes that this model cannot have sampled: token ids beyond its vocabulary, or more tokens than its context."""
    if batch.token_ids_t.min() < 0 or batch.token_ids_t.max() >= model.vocab_size:
        raise ValueError(
            f"token ids from {batch.token_ids_t.min()} to {batch.token_ids_t.max()}, but the learner's model has a vocabulary of"
            f" {model.vocab_size}: engine and learner must load the same model and tokenizer"
        )
    if batch.lengths.max() > model.max_position_embeddings:
        raise ValueError(
            f"an episode of {batch.lengths.max()} tokens passes the model's context of {model.max_position_embeddings}: lower"
            " budget.max_response_tokens or rollout.engine.max_model_len"
        )
