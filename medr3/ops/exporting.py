"""A run's model for others: a checkpoint as a Hugging Face folder, with its tokenizer and a card that says how it was trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from learner.checkpoint_folder import CheckpointRefused, unfinished
from medr3.errors import UserError
from medr3.json_file import read_object
from medr3.ops.model_card import model_card
from medr3.run.manifest import CheckpointRecord, Manifest, best_first, open_manifest
from tasks.tokenizer import keep_as_written


def export(run_folder: Path, out: Path, which: str, dtype: str | None) -> Path:
    """Writes `out`, which appears when it is complete, and returns it."""
    manifest = open_manifest(run_folder)
    if manifest is None:
        raise UserError(f"{run_folder}: has no checkpoint yet, so there is nothing to export: wait for its first one")
    if out.exists():
        raise UserError(f"{out} exists: name a new folder")
    config = read_object(run_folder / "config.json")
    record, base = choose(manifest, which), base_model(run_folder, config)
    written = unfinished(out)
    shutil.rmtree(written, ignore_errors=True)
    _write_model(run_folder / record.folder, base, written, dtype or config["learner"]["dtype"])
    keep_as_written(written)
    (written / "README.md").write_text(model_card(config, manifest, record, out.name), encoding="utf-8")
    os.replace(written, out)
    return out


def _write_model(checkpoint: Path, base: Path, folder: Path, dtype: str) -> None:
    import torch  # here, so that a mistake on the command line is told at once

    from learner.export import export_checkpoint
    from learner.loading import ModelRefused
    from learner.tensor_files import FileRefused

    try:
        export_checkpoint(checkpoint, base, folder, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    except (CheckpointRefused, FileRefused, ModelRefused) as error:
        raise UserError(str(error)) from None


def choose(manifest: Manifest, which: str) -> CheckpointRecord:
    """The checkpoint that `last`, `best` or a step means, among those that are kept."""
    kept = manifest.checkpoints
    if which == "last":
        return kept[-1]
    if which == "best":
        if not (ranked := best_first(kept)):
            raise UserError("no checkpoint of this run has a held-out score yet: export the last one")
        return ranked[0]
    for record in kept:
        if which == str(record.step):
            return record
    raise UserError(f"--checkpoint {which}: kept are last, best, or step {', '.join(str(record.step) for record in kept)}")


def base_model(run_folder: Path, config: dict[str, Any]) -> Path:
    """The folder that the run started from: its own cold start, unless the configuration names a model."""
    path = (config.get("model") or {}).get("path")
    return Path(path) if path else run_folder / "cold_start"
