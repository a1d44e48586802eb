"""The one file that decides what a run resumes from. It is written last, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medr3.errors import UserError
from security.hiding import scrubbed
from trajectories.durable import checksum_of, sync

MANIFEST, CHECKPOINTS = "manifest.json", "checkpoints"


class CheckpointRecord(BaseModel):
    """One checkpoint of a run, and how good its phase was when last probed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str  # relative to the run's
    step: int
    phase: str
    phase_index: int
    score: float | None  # held-out accuracy at the phase's last probe
    probed_at: int | None  # the step of that probe: weights may have moved on since

    @field_validator("folder")
    @classmethod
    def _lies_in_the_run(cls, folder: str) -> str:
        """A manifest that was brought from elsewhere must not name what lies elsewhere."""
        if Path(folder).is_absolute() or not {"..", ""}.isdisjoint(folder.split("/")):
            raise ValueError(f"checkpoint {folder!r} does not lie in the run's folder")
        return folder


class Parent(BaseModel):
    """The run, and the state of it, that a fork began with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    step: int
    config_hash: str
    changed: list[str]  # the settings that differ from the parent's, by their dotted names


class Manifest(BaseModel):
    """All state of a run at the end of one step, but for the tensors, which lie in the checkpoint that it names."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[3] = 3
    run_id: str
    step: int
    generation: int
    checkpoints: list[CheckpointRecord] = Field(min_length=1)  # all that are kept, oldest first; a resume starts from the last
    config_hash: str
    index_hash: str
    tracker_id: str
    events: int  # how many events the run had written
    ledger: dict[str, Any]
    sampler: dict[str, Any]
    controller: dict[str, Any]
    progress: dict[str, Any]  # what the summary will tell: scores so far, phases left, seconds by stage
    forked_from: Parent | None = None  # of a run that began with another's weights
    checksum: str = Field(default="", exclude=True)  # of the file alone: what is above as it was written

    @property
    def checkpoint(self) -> str:
        """The tensors of this state."""
        return self.checkpoints[-1].folder


def write_json(path: Path, value: object, *, exact: bool = False) -> None:
    """Replaces a JSON file atomically and durably; without secrets, unless it is state that is read back exactly."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value if exact else scrubbed(value), file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync(path.parent)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Into a checkpoint's folder, or into the run's: from that moment on a resume starts here."""
    write_json(folder / MANIFEST, _sealed(manifest), exact=True)


def manifest_bytes(manifest: Manifest) -> bytes:
    """As the file has it."""
    return json.dumps(_sealed(manifest), indent=1, allow_nan=False).encode()


def _sealed(manifest: Manifest) -> dict[str, Any]:
    """With a checksum, so that a flipped bit that is still JSON is no other state."""
    content = manifest.model_dump(mode="json")
    return {**content, "checksum": checksum_of(content)}


def open_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run or of a checkpoint, whatever its configuration; None where there is none yet."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        found = Manifest.model_validate_json(path.read_bytes())
        if found.checksum and found.checksum != _sealed(found)["checksum"]:
            raise UserError(f"{path}: has other content than was written; start anew with --resume never")
    except ValidationError as error:
        raise UserError(
            f"{path}: not a manifest of this version: {error.errors()[0]['msg']}; start anew with --resume never"
        ) from None
    except (ValueError, RecursionError):  # halves of characters, and depths, that no run writes
        raise UserError(f"{path}: has other content than was written; start anew with --resume never") from None
    return found.model_copy(update={"checksum": ""})


def worth_keeping(
    records: Sequence[CheckpointRecord], last: int, best: int, every: int | None = None
) -> list[CheckpointRecord]:
    """The newest, and beside them the best by held-out score and those of every so many steps, oldest first.

    Example:
        >>> def record(step, score):
        ...     return CheckpointRecord(folder=str(step), step=step, phase="p", phase_index=0, score=score, probed_at=step)
        >>> scores = {10: 0.5, 20: 0.9, 30: 0.6, 40: 0.7, 50: 0.8}
        >>> [kept.step for kept in worth_keeping([record(*each) for each in scores.items()], last=1, best=1, every=30)]
        [20, 30, 50]
    """
    regular = [record for record in records if every is not None and record.step % every == 0]
    kept = {record.folder for record in (*records[-last:], *best_first(records)[:best], *regular)}
    return [record for record in records if record.folder in kept]


def best_first(records: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
    """By held-out score, which compares within a phase only: a later phase stands above an earlier one, it is what the run is for."""
    scored = [record for record in records if record.score is not None]
    return sorted(scored, key=_quality, reverse=True)


def _quality(record: CheckpointRecord) -> tuple[int, float, bool, int]:
    """Of those that share a probe, the one that it measured comes first: the others moved on since."""
    return record.phase_index, record.score or 0.0, record.probed_at == record.step, record.step


def prune_checkpoints(run_folder: Path, manifest: Manifest, spare: str = "") -> None:
    """Removes what the manifest does not name, what a killed run left unfinished included; called while none is being written.

    `spare` is a checkpoint that somebody still reads.
    """
    named = {run_folder / name for name in (*(record.folder for record in manifest.checkpoints), spare)}
    for folder in (run_folder / CHECKPOINTS).glob("step-*"):
        if folder not in named:
            shutil.rmtree(folder)
