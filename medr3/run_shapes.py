"""What the small files of a run hold, as far as others read them: a file that was damaged or written by hand is told by its first fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medr3.errors import UserError
from medr3.json_file import read_object

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=-(2**53), le=2**53)]  # what a float holds too
ProcessId = Annotated[int, Field(ge=1, lt=2**31)]


class _File(BaseModel):
    """Everything may be absent, and more may be there."""

    model_config = ConfigDict(extra="allow", strict=True)


class Status(_File):
    """status.json."""

    state: str = ""
    step: Count = 0
    phase: str = ""
    pid: ProcessId = 1
    host: str = ""
    time: Number = 0
    engines: dict[str, str] = {}
    pool_target: Count = 0
    ages: dict[str, Count] = {}
    step_s: Number = 0
    eta_s: Number = 0


class _Cell(_File):
    accuracy: Number
    n: Count = 0
    without_retrieval: Number | None = None


class _Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Phase(_File):
    name: str
    steps: Count
    left_by: str


class Summary(_File):
    """summary.json."""

    wall_s: Number = 0
    heldout: dict[str, Number] = {}
    heldout_by_phase: dict[str, dict[str, _Cell | _Nothing]] = {}
    phases: list[_Phase] = []
    groups: dict[str, Count] = {}
    time_by_stage: dict[str, Number] = {}
    tokens_per_s: Number = 0
    max_age: Number = 0
    model_tokens: Count = 0


def wrong_in(found: Mapping[str, Any], shape: type[_File]) -> str:
    """The first field that has another form; empty where none has.

    Example:
        >>> wrong_in({"step": 7, "note": "x"}, Status), wrong_in({"step": "7"}, Status)
        ('', 'step: Input should be a valid integer')
    """
    try:
        shape.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return " ".join(f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg']}".split())
    return ""


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary.json; one UserError line where it cannot be read."""
    path = folder / "summary.json"
    found = read_object(path)
    if wrong := wrong_in(found, Summary):
        raise UserError(f"{path}: {wrong}: the file is damaged")
    return found
