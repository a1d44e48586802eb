"""Reads corpora from JSON lines, as MedRAG writes them (id, title, content, contents) and with this system's own fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.questions import Document


class CorpusError(ValueError):
    """A line of a corpus that is not a document; its text names file, line and reason."""


def read_jsonl(path: Path) -> Iterator[Document]:
    """The documents of a file, one per line; empty lines are skipped, unknown fields (PMID, …) ignored.

    The text is the first of `text`, `content` and `contents` that is not empty.
    """
    with path.open("rb") as lines:  # as bytes, so that a bad encoding is reported with its line, too
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield _document(json.loads(line.decode("utf-8")))
                except (ValueError, RecursionError) as error:
                    raise CorpusError(f"{path}, line {number}: {_in_one_line(error)}") from error


def _document(fields: Any) -> Document:
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
    text = next((fields[key] for key in ("text", "content", "contents") if fields.get(key)), None)
    if text is None:
        raise ValueError("no text: one of 'text', 'content', 'contents' must be filled")
    known = {key: fields[key] for key in Document.model_fields if fields.get(key) is not None}
    return Document.model_validate({**known, "text": text})


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
    return str(error)
