"""The one file that decides what a run resumes from. It is written last, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medr3.errors import UserError

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


class Manifest(BaseModel):
    """All state of a run at the end of one step, but for the tensors, which lie in the checkpoint that it names."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[3] = 3
    run_id: str
    step: int
    generation: int
    checkpoints: list[CheckpointRecord]  # all that are kept, oldest first; a resume starts from the last
    config_hash: str
    index_hash: str
    tracker_id: str
    events: int  # how many events the run had written
    ledger: dict[str, Any]
    sampler: dict[str, Any]
    controller: dict[str, Any]
    progress: dict[str, Any]  # what the summary will tell: scores so far, phases left, seconds by stage

    @property
    def checkpoint(self) -> str:
        """The tensors of this state."""
        return self.checkpoints[-1].folder


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file atomically and durably."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Into a checkpoint's folder, or into the run's: from that moment on a resume starts here."""
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def open_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run or of a checkpoint, whatever its configuration; None where there is none yet."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path}: not a manifest of this version: {error.errors()[0]['msg']}; start anew with --resume never"
        ) from None


def read_manifest(run_folder: Path, config_hash: str) -> Manifest | None:
    """The manifest to resume from; None where the run has none yet. Another configuration's manifest is refused."""
    manifest, path = open_manifest(run_folder), run_folder / MANIFEST
    if manifest is None:
        return None
    if manifest.config_hash != config_hash:
        raise UserError(
            f"{path}: belongs to another configuration: give the run another run.folder, or start anew with --resume never"
        )
    if not (run_folder / manifest.checkpoint).is_dir():
        raise UserError(f"{path}: names {manifest.checkpoint}, which is gone: start anew with --resume never")
    return manifest


def worth_keeping(records: Sequence[CheckpointRecord], last: int, best: int) -> list[CheckpointRecord]:
    """The newest, and beside them the best by held-out score, oldest first."""
    kept = {record.folder for record in (*records[-last:], *best_first(records)[:best])}
    return [record for record in records if record.folder in kept]


def best_first(records: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
    """By held-out score, which compares within a phase only: a later phase stands above an earlier one, it is what the run is for."""
    scored = [record for record in records if record.score is not None]
    return sorted(scored, key=_quality, reverse=True)


def _quality(record: CheckpointRecord) -> tuple[int, float, bool, int]:
    """Of those that share a probe, the one that it measured comes first: the others moved on since."""
    return record.phase_index, record.score or 0.0, record.probed_at == record.step, record.step


def prune_checkpoints(run_folder: Path, manifest: Manifest) -> None:
    """Removes what the manifest does not name, what a killed run left unfinished included; called while none is being written."""
    named = {run_folder / record.folder for record in manifest.checkpoints}
    for folder in (run_folder / CHECKPOINTS).glob("step-*"):
        if folder not in named:
            shutil.rmtree(folder)
