"""What is asked: one question, with the three kinds of answer that the system rewards."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AnswerKind(StrEnum):
    """How an answer is checked: an exact letter, a value within limits, or a normalised text."""

    CHOICE = "choice"
    NUMBER = "number"
    TEXT = "text"


class Document(BaseModel):
    """One retrievable piece of literature. `evidence_level` runs from 1 (best) to 6, as I–VI do in evidence-based medicine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    title: str = ""
    collection: str = ""
    publication_type: str = ""
    evidence_level: int | None = Field(default=None, ge=1, le=6)
    year: int | None = None
    retracted: bool = False


class Provenance(BaseModel):
    """Where a question, or one edge of its reference graphs, was taken from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str = Field(description="a file and a row of it, or the id of a document")
    edge: tuple[str, str, str] | None = Field(default=None, description="the edge that it states; none: the question itself")


class LengthInstruction(BaseModel):
    """Med-U1's control of length: think for exactly, or for at most, so many tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str = Field(pattern="^(exact|at_most)$")
    tokens: int = Field(gt=0)


_LETTERS = frozenset("ABCDEFGHIJKLMN")
_ASKED_LENGTH = re.compile(r"(.+)@(exact|at_most)-([1-9]\d{0,8})", re.DOTALL)


class Question(BaseModel):
    """One question with its gold answer and all that a reward may ask about it.

    Example:
        >>> Question(id="q1", text="drug-dose lomab 7 kg ?", kind="number", gold="42", lower=42, upper=42).kind.value
        'number'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    kind: AnswerKind
    gold: str = Field(min_length=1, description="letter for a choice, decimal or ISO date for a number, phrase for a text")
    aliases: tuple[str, ...] = ()
    broader: tuple[str, ...] = Field(default=(), description="categories that contain the gold answer: half right as an answer")
    options: dict[str, str] = Field(default_factory=dict, description="letter → option, for a choice")
    lower: float | None = Field(default=None, allow_inf_nan=False)
    upper: float | None = Field(default=None, allow_inf_nan=False)
    unit: str = ""
    source: str = "unknown"
    specialty: str = ""
    hops: int = Field(default=1, ge=1)
    collection: str = Field(default="", description="the body of literature that is searched; empty: all of it")
    gold_documents: tuple[str, ...] = ()
    reference_graphs: tuple[tuple[tuple[str, str, str], ...], ...] = Field(
        default=(), description="ways to reason to the answer, each a graph of (entity, relation, entity)"
    )
    provenance: tuple[Provenance, ...] = ()
    context: tuple[Document, ...] = Field(default=(), description="documents handed over with the question (reasoning phase)")
    length: LengthInstruction | None = None

    def thinking_for(self, length: LengthInstruction) -> Question:
        """The same question with an instruction of length: a question of its own, whose id says so."""
        return self.model_copy(update={"id": f"{self.id}@{length.mode}-{length.tokens}", "length": length})

    @model_validator(mode="after")
    def _gold_fits_kind(self) -> Self:
        if self.kind is AnswerKind.CHOICE:
            if not self.options.keys() <= _LETTERS:
                raise ValueError(f"question {self.id}: option letters must be A to N, got {sorted(self.options)}")
            if self.gold not in self.options:
                raise ValueError(f"question {self.id}: gold {self.gold!r} is not among the options {sorted(self.options)}")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"question {self.id}: lower limit {self.lower} is above the upper limit {self.upper}")
        return self


def without_length(question_id: str) -> tuple[str, LengthInstruction | None]:
    """The id of the question itself, and the instruction that its id was given.

    Example:
        >>> without_length("world/joint/train-0/7@at_most-200")
        ('world/joint/train-0/7', LengthInstruction(mode='at_most', tokens=200))
        >>> without_length("anna@exact-science")
        ('anna@exact-science', None)
    """
    found = _ASKED_LENGTH.fullmatch(question_id)
    return (found[1], LengthInstruction(mode=found[2], tokens=int(found[3]))) if found else (question_id, None)
