"""`medr3 data corpus`: what a body of literature holds before an index is built of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from tasks.corpora import Chunking, read_corpus
from tasks.quarantine import Quarantine

LEVELS = ("I", "II", "III", "IV", "V", "VI")


@dataclass
class CorpusCheck:
    """The figures of one corpus."""

    path: str
    documents: int = 0
    characters: int = 0
    duplicates: int = 0  # an id that came before: an index keeps one of them
    retracted: int = 0
    levels: Counter[int | None] = field(default_factory=Counter)
    years: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        levels = {name: self.levels[number] for number, name in enumerate(LEVELS, start=1)}
        return {
            "path": self.path, "documents": self.documents, "characters": self.characters, "duplicate_ids": self.duplicates,
            "retracted": self.retracted, "levels": levels | {"none": self.levels[None]}, "years": self.years,
        }  # fmt: skip


def check_corpus(path: Path, format_: str, chunking: Chunking | None, kept: Quarantine) -> CorpusCheck:
    """Reads a corpus once; of every document only a hash of its id is kept."""
    found, ids = CorpusCheck(str(path)), set[int]()
    for document in read_corpus(path, format_ or None, chunking=chunking, on_malformed=kept.take):
        found.documents += 1
        found.characters += len(document.text)
        found.retracted += document.retracted
        found.levels[document.evidence_level] += 1
        if document.year is not None:
            first, last = found.years or (document.year, document.year)
            found.years = min(first, document.year), max(last, document.year)
        key = xxhash.xxh3_64_intdigest(document.id.encode("utf-8", "surrogatepass"))
        found.duplicates += key in ids
        ids.add(key)
    return found
