"""Long texts in pieces that overlap, cut where a paragraph, a sentence or at least a word ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict, Field, model_validator

_ENDS = (re.compile(r"\n[^\S\n]*+\n"), re.compile(r"(?<=[.!?])\s"), re.compile(r"\s"))


class Chunking(BaseModel):
    """How long a piece is at most, and how much of it the next one repeats; 1000 and 200 characters are MedRAG's for textbooks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=1000, ge=50, le=1_000_000)
    overlap: int = Field(default=200, ge=0)

    @model_validator(mode="after")
    def _it_goes_on(self) -> Chunking:
        if self.overlap > self.size // 2:
            raise ValueError(f"an overlap of {self.overlap} is more than half of {self.size} characters: it would hardly go on")
        return self


def chunks(blocks: Iterable[str], chunking: Chunking) -> Iterator[str]:
    """The pieces of a text that comes in blocks of any length, white space within them made single spaces.

    Example:
        >>> list(chunks(["Iron is low. Ferritin is low too. " * 2], Chunking(size=50, overlap=20)))
        ['Iron is low. Ferritin is low too. Iron is low.', 'too. Iron is low. Ferritin is low too.']
    """
    text = ""
    for block in blocks:
        text += block
        while len(text) > chunking.size:
            end = _cut(text, chunking.size)
            if piece := _plain(text[:end]):
                yield piece
            text = text[_resume(text, end, chunking.overlap) :]
    if piece := _plain(text):
        yield piece


def _cut(text: str, size: int) -> int:
    """Where the first piece ends: behind a paragraph, else a sentence, else a word of its second half, else in the middle of one."""
    for end in _ENDS:
        if found := [match.end() for match in end.finditer(text, size // 2, size)]:
            return found[-1]
    return size


def _resume(text: str, end: int, overlap: int) -> int:
    """Where the next piece begins: at the first word that lies within the overlap."""
    if overlap == 0:
        return end
    found = _ENDS[-1].search(text, end - overlap, end - 1)
    return found.end() if found else end


def _plain(text: str) -> str:
    return " ".join(text.split())
