"""What is evaluated: a run's checkpoint, or a folder that transformers opens. Everything wrong with it is told before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.ops.exporting import choose, export
from medr3.run.manifest import open_manifest
from trajectories.schema import WeightVersion

_GENERATION = re.compile(r"-generation-(\d+)$")


@dataclass(frozen=True)
class Target:
    """A model to be, once `prepare` has made or checked its folder."""

    name: str
    model: str  # in words
    config: RunConfig
    version: WeightVersion
    folder: Path | None = None  # of the model; None: a checkpoint that has to be exported
    run: Path | None = None
    checkpoint: str = ""

    def prepare(self, work: Path) -> Path:
        """The model's folder, checked."""
        if self.folder is not None:
            return checked(self.folder)
        assert self.run is not None, "a target is a folder or a run"
        return checked(export(self.run, work / "model", self.checkpoint, None))


def run_target(run: Path, config: RunConfig, checkpoint: str) -> Target:
    """`config` is the run's own, whose folder may have been moved since it was written."""
    manifest = open_manifest(run)
    if manifest is None:
        raise UserError(f"{run}: has no checkpoint yet, so there is nothing to evaluate: wait for its first one")
    record = choose(manifest, checkpoint)
    found = _GENERATION.search(record.folder)
    version = WeightVersion(int(found[1]) if found else manifest.generation, record.step)
    config.run.folder = run
    return Target(run.resolve().name, f"step {record.step}, {record.phase}", config, version, None, run, str(record.step))


def folder_target(folder: Path, config: RunConfig) -> Target:
    return Target(folder.resolve().name, str(folder), config, WeightVersion(1, 0), folder=folder)


def checked(folder: Path) -> Path:
    """A model that an engine and the prompts can use, or one line that says what it lacks."""
    from learner.loading import ModelRefused, open_model
    from learner.tensor_files import FileRefused
    from tasks.tokenizer import load_tokenizer

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json: name a run, or the folder of a Hugging Face model")
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    ):
        raise UserError(f"{folder}: has no tokenizer: copy the tokenizer's files beside the model")
    try:
        tokenizer = load_tokenizer(folder)
        template, end = tokenizer.chat_template, tokenizer.eos_token_id
    except Exception as error:  # whatever a tokenizer's library says of a broken file
        raise UserError(
            f"{folder}: its tokenizer does not open: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from None
    if not template or end is None:
        lack = "chat template, which every prompt is put into" if not template else "eos_token, by which a text ends"
        raise UserError(f"{folder}: its tokenizer has no {lack}: add it to its tokenizer_config.json")
    try:
        open_model(folder)
    except (ModelRefused, FileRefused) as error:
        raise UserError(str(error)) from None
    return folder
