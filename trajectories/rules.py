"""`schema.check` over whole tables: numpy finds the rows that may be wrong, and only those are put into words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajectories.schema import Source, check

_CHECKED = ("token_ids", "loss_mask", "logprobs", "segments", "versions")

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def broken_rows(table: pa.Table) -> dict[int, list[str]]:
    """Row number → what `schema.check` says of it, for the rows that break a rule.

    Example:
        >>> from trajectories.schema import EPISODE_SCHEMA
        >>> broken_rows(EPISODE_SCHEMA.empty_table())
        {}
    """
    if not table.num_rows:
        return {}
    if nulls := [name for name in _CHECKED if table[name].null_count]:
        return {row: [f"column {', '.join(nulls)} has nulls"] for row in range(table.num_rows)}
    suspects = np.flatnonzero(_suspects(table))
    rows = table.select(_CHECKED).take(suspects).to_pylist() if len(suspects) else []
    found = {int(number): check(row) for number, row in zip(suspects, rows, strict=True)}
    return {number: wrong for number, wrong in found.items() if wrong}


def lengths(table: pa.Table, name: str) -> Ints:
    """Number of entries of a list column in each row."""
    return np.diff(_list(table, name).offsets.to_numpy()).astype(np.int64)


def flat(table: pa.Table, name: str) -> Any:
    """All entries of a list column, row after row, as an Arrow array."""
    return _list(table, name).flatten()


def owners(table: pa.Table, name: str) -> Ints:
    """For each entry of `flat`, the row that it belongs to."""
    return np.repeat(np.arange(table.num_rows), lengths(table, name))


def _list(table: pa.Table, name: str) -> Any:
    combined = table[name].combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _numbers(struct: Any, name: str) -> Ints:
    return np.asarray(struct.field(name).to_numpy(zero_copy_only=False), dtype=np.int64)


def _suspects(table: pa.Table) -> Bools:
    """True for every row that breaks a rule. A few that break none may be among them; none that breaks one is left out."""
    tokens = lengths(table, "token_ids")
    suspect: Bools = (lengths(table, "loss_mask") != tokens) | (lengths(table, "logprobs") != tokens)
    suspect |= _badly_tiled(table, tokens)

    # Flat arrays line up only where the rows above are sound, so the rest is looked at without the others.
    sound = np.flatnonzero(~suspect)
    table, tokens = table.take(sound), tokens[sound]
    segments = flat(table, "segments")
    is_model = np.asarray(segments.field("source").to_numpy(zero_copy_only=False)) == Source.MODEL.value
    from_model = np.repeat(is_model, _numbers(segments, "end") - _numbers(segments, "start"))
    mask = np.asarray(flat(table, "loss_mask").to_numpy(zero_copy_only=False), dtype=bool)
    logprobs = np.asarray(flat(table, "logprobs").to_numpy(zero_copy_only=False), dtype=np.float64)
    wrong_token = ~from_model & (mask | (logprobs != 0.0))
    wrong_row = _any_per_row(wrong_token, tokens) | _badly_covered(table, tokens, from_model)
    suspect[sound] |= wrong_row
    return suspect


def _badly_tiled(table: pa.Table, tokens: Ints) -> Bools:
    count = lengths(table, "segments")
    segments = flat(table, "segments")
    row = owners(table, "segments")
    start, end = _numbers(segments, "start"), _numbers(segments, "end")
    first = np.ones(len(row), dtype=bool)
    first[1:] = row[1:] != row[:-1]
    last = np.roll(first, -1)
    expected = np.where(first, 0, np.roll(end, 1))
    bad: Bools = (count == 0) & (tokens > 0)
    bad[row[(start != expected) | (end < start)]] = True
    bad[row[last & (end != tokens[row])]] = True
    return bad


def _badly_covered(table: pa.Table, tokens: Ints, from_model: Bools) -> Bools:
    versions = flat(table, "versions")
    row = owners(table, "versions")
    start, end = _numbers(versions, "start"), _numbers(versions, "end")
    outside = (start < 0) | (end > tokens[row]) | (end < start)
    bad = np.zeros(len(tokens), dtype=bool)
    bad[row[outside]] = True
    offset = (np.cumsum(tokens) - tokens)[row]
    # Depth of coverage at each token: +1 where a span starts, −1 behind its end.
    depth = np.zeros(int(tokens.sum()) + 1, dtype=np.int64)
    np.add.at(depth, (offset + start)[~outside], 1)
    np.add.at(depth, (offset + end)[~outside], -1)
    covered = np.cumsum(depth[:-1]) > 0
    return bad | _any_per_row(covered != from_model, tokens)


def _any_per_row(flags: Bools, tokens: Ints) -> Bools:
    hit = np.zeros(len(tokens), dtype=bool)
    hit[np.repeat(np.arange(len(tokens)), tokens)[flags]] = True
    return hit
