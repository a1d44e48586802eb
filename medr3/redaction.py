"""Text of a run without what a person could be found by, where `run.redact` is `phi`: in rows that are stored, and in what leaves.

What is learned from is not touched: token ids are what the learner, a replay and a resume work on, and they stay in the run's own
folder as they were. Who has the tokenizer reads them, so that folder is as confidential as the questions and documents were, and
what leaves it goes without them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from security.identifiers import redact

TEXTS = ("text", "answer")
SEARCHED = ("query", "documents")
NO_TOKEN = 0  # in place of every token id that leaves; masks and segments keep their lengths
_DOCUMENTS_KEPT = 4096  # a group's episodes find the same documents

_redacted = lru_cache(_DOCUMENTS_KEPT)(redact)


def redacts(run_folder: Path) -> bool:
    """Whether a run keeps its stored text without identifiers. A folder without a readable configuration is none of ours."""
    try:
        config = json.loads((run_folder / "config.json").read_bytes())
        return bool(config["run"].get("redact") == "phi")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def redact_rows(rows: pa.Table) -> pa.Table:
    """The same rows, but for what a model wrote and was shown."""
    for column in TEXTS:
        if column in rows.column_names:
            rows = _with(rows, column, [None if text is None else _redacted(text) for text in rows[column].to_pylist()])
    if "searches" in rows.column_names:
        rows = _with(
            rows, "searches", [None if made is None else list(map(_search, made)) for made in rows["searches"].to_pylist()]
        )
    return rows


def for_export(rows: pa.Table) -> pa.Table:
    """Rows as they may leave the run's folder: redacted, and with token ids that say nothing."""
    rows = redact_rows(rows)
    if "token_ids" in rows.column_names:
        lengths = [len(ids or ()) for ids in rows["token_ids"].to_pylist()]
        rows = _with(rows, "token_ids", [np.full(length, NO_TOKEN, np.int32) for length in lengths])
    return rows


def redact_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row as a person is shown it, without tokens that say more."""
    shown = dict(row)
    if "token_ids" in shown:
        shown["token_ids"] = [NO_TOKEN] * len(shown["token_ids"])
    for column in TEXTS:
        if shown.get(column):
            shown[column] = _redacted(shown[column])
    if shown.get("searches"):
        shown["searches"] = list(map(_search, shown["searches"]))
    return shown


def _search(made: dict[str, Any]) -> dict[str, Any]:
    return made | {
        "query": _redacted(made["query"] or ""),
        "documents": [_redacted(text or "") for text in made["documents"] or ()],
    }


def _with(rows: pa.Table, column: str, values: list[Any]) -> pa.Table:
    place = rows.schema.get_field_index(column)
    return rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type))
