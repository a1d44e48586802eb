"""The one file that decides what a run resumes from. It is written last, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from medr3.errors import UserError

MANIFEST, CHECKPOINTS = "manifest.json", "checkpoints"
MANIFEST_SCHEMA = 1


class Manifest(BaseModel):
    """All state of a run at the end of one step, but for the tensors, which lie in the checkpoint that it names."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = MANIFEST_SCHEMA
    run_id: str
    step: int
    generation: int
    checkpoint: str  # folder, relative to the run's
    config_hash: str
    index_hash: str
    tracker_id: str
    events: int  # how many events the run had written
    ledger: dict[str, Any]
    sampler: dict[str, Any]
    controller: dict[str, Any]
    progress: dict[str, Any]  # what the summary will tell: scores so far, phases left, seconds by stage


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file atomically and durably."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_manifest(run_folder: Path, manifest: Manifest) -> None:
    """From this moment on a resume starts here."""
    write_json(run_folder / MANIFEST, manifest.model_dump(mode="json"))


def read_manifest(run_folder: Path, config_hash: str) -> Manifest | None:
    """The manifest to resume from; None where the run has none yet. Another configuration's manifest is refused."""
    path = run_folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path}: not a manifest of this version: {error.errors()[0]['msg']}; start anew with --resume never"
        ) from None
    if manifest.config_hash != config_hash:
        raise UserError(
            f"{path}: belongs to another configuration: give the run another run.folder, or start anew with --resume never"
        )
    if not (run_folder / manifest.checkpoint).is_dir():
        raise UserError(f"{path}: names {manifest.checkpoint}, which is gone: start anew with --resume never")
    return manifest


def prune_checkpoints(run_folder: Path, keep: int, current: str) -> None:
    """Removes all but the newest checkpoints; never the one that the manifest names."""
    folders = sorted(folder for folder in (run_folder / CHECKPOINTS).glob("step-*") if folder.is_dir())
    for folder in folders[:-keep]:
        if folder != run_folder / current:
            shutil.rmtree(folder)
