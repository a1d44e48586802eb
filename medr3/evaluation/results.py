"""result.json: everything that an evaluation found, down to each episode, so that two of them can be compared question by question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.messages import Examined
from medr3.errors import UserError
from medr3.evaluation.settings import Setting
from medr3.json_file import read_object
from tasks.questions import Question

RESULT = "result.json"
RESULT_SCHEMA = 1


class Asked(BaseModel):
    """What a question was, as far as figures are told apart by it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: str
    source: str
    specialty: str
    hops: int

    @classmethod
    def of(cls, question: Question) -> Asked:
        return cls(
            id=question.id,
            kind=question.kind.value,
            source=question.source,
            specialty=question.specialty,
            hops=question.hops,
        )


class Cell(BaseModel):
    """One setting: its figures, and the episodes that they are made of, question after question."""

    model_config = ConfigDict(extra="forbid")

    setting: Setting
    metrics: dict[str, Any]
    records: list[Examined]


class Result(BaseModel):
    """One evaluation."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = RESULT_SCHEMA
    target: str  # the run, the folder or the endpoint
    model: str  # which of its checkpoints, or the endpoint's name for it
    datasets: list[str]
    seed: int = Field(ge=0)
    index_hash: str  # "" where nothing was searched
    started_at: float  # Unix seconds
    wall_s: float
    questions: list[Asked]
    cells: list[Cell]


def read_result(path: Path) -> Result:
    """The result in a file, or in a folder's result.json."""
    path = path / RESULT if path.is_dir() else path
    found = read_object(path, f"name the {RESULT} of an evaluation, or its folder")
    if found.get("schema_version") != RESULT_SCHEMA:
        raise UserError(f"{path}: is no {RESULT} of version {RESULT_SCHEMA}: evaluate again")
    try:
        return Result.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = " ".join(".".join(map(str, first["loc"])).split())
        raise UserError(f"{path}: {where}: {first['msg']}: is the file damaged?") from None
