"""What a run starts from: nothing, the newest whole state of its folder, or the one that somebody named.

::

    never ─▶ nothing of an earlier course is kept but what the configuration alone decides: index, cold start, questions
    auto  ─▶ the manifest ─▶ its newest checkpoint that is whole; without a manifest: the newest whole checkpoint with one of its own
    PATH  ─▶ a run folder: as auto, but it must have a manifest; one of its checkpoints: that one, and what came after it is taken back
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from learner.checkpoint_folder import UNFINISHED, CheckpointRefused, check_whole
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.run.control import CONTROL, POOL, POOL_TAKEN
from medr3.run.control import TAKEN as CONTROL_TAKEN
from medr3.run.manifest import CHECKPOINTS, MANIFEST, Manifest, open_manifest, write_manifest
from medr3.run.settings import changes
from medr3.run.snapshots import refuse_damaged
from medr3.run.sole_driver import LOCK
from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER
from trajectories.events import EventKind, read_events
from trajectories.store import stored_steps

CONFIG = "config.json"
# Checkpoints go first: each can be gone on from by itself, and events that it counts must be there as long as it is.
OWNED = (
    CHECKPOINTS, MANIFEST, EVENTS_FILE, "metrics.jsonl", "heldout.jsonl", "status.json", "summary.json", "report.html",
    TRAJECTORIES_FOLDER, "wandb", "tensorboard", "ray_train", CONTROL, CONTROL_TAKEN, POOL, POOL_TAKEN,
)  # fmt: skip
# What is made of a part of the configuration, and of the seed, is kept while that part is the same.
MADE_OF = {
    "index": {"world", "retrieval"},
    "cold_start": {"world", "retrieval", "cold_start"},
    "questions": {"model", "datasets"},
}


class Place(NamedTuple):
    """What `--resume PATH` names: a run folder, and one of its checkpoints or none."""

    folder: Path
    checkpoint: str = ""


def place(path: Path) -> Place:
    """A run folder, or a checkpoint in one."""
    path = path.resolve()
    if path.parent.name == CHECKPOINTS:
        found = Place(path.parent.parent, f"{CHECKPOINTS}/{path.name}")
        if not path.is_dir():
            raise UserError(f"--resume {path}: there is no such checkpoint{_there_are(found.folder)}")
        return found
    if not (path / MANIFEST).is_file():
        raise UserError(f"--resume {path}: has no {MANIFEST}: name a run folder that has one, or a checkpoint in it")
    return Place(path)


def resume(config: RunConfig, checkpoint: str = "", say: Callable[[str], None] = print) -> Manifest | None:
    """The state to go on from, written as the run's own where it is not the newest one; None where the folder holds none."""
    folder = config.run.folder
    newest = _newest(folder, say)
    if newest is None:
        return None
    refuse_another(config, newest)
    for left_over in (folder / CHECKPOINTS).glob(f"*{UNFINISHED}"):  # of a disk that was full it may be what fills it
        shutil.rmtree(left_over, ignore_errors=True)
    if checkpoint:
        damage = _damage(folder / checkpoint)
        state = None if damage else _state_of(folder, checkpoint, newest)
        if state is None:
            raise UserError(
                f"--resume {folder / checkpoint}: {damage or f'has no {MANIFEST} that can be read'}{_there_are(folder)}"
            )
        say(f"going back to step {state.step}; what came after it is taken back")
    else:
        state = newest_whole(folder, newest, say)
    refuse_damaged(state, config, folder / MANIFEST)
    _refuse_lost_events(folder, state)
    if state != newest or _own_manifest(folder) != state:
        write_manifest(folder, state)  # or a resume that is killed would go on from the other one
    return state


def newest_whole(folder: Path, manifest: Manifest, say: Callable[[str], None] = print) -> Manifest:
    """The manifest, or that of its newest checkpoint that is whole; damaged ones are told."""
    for record in reversed(manifest.checkpoints):
        damage = _damage(folder / record.folder)
        if not damage and record is manifest.checkpoints[-1]:
            return manifest
        state = None if damage else _state_of(folder, record.folder, manifest)
        if state is not None:
            say(f"going on from step {record.step}")
            return state
        say(f"warning: {record.folder}: {damage or f'has no {MANIFEST} that can be read'}")
    raise UserError(f"{folder / MANIFEST}: no checkpoint that it names is whole: start anew with --resume never")


def refuse_another_s_folder(folder: Path) -> None:
    """A course that begins removes what an earlier one left; that must not be what somebody else put there."""
    signs = (LOCK, MANIFEST, EVENTS_FILE)
    if any((folder / name).exists() for name in signs) or stored_config(folder) is not None:
        return
    if found := sorted(name for name in (*OWNED, *MADE_OF) if (folder / name).exists()):
        raise UserError(
            f"run.folder: {folder} holds {', '.join(found)} and no run, and a run would take their place: name another folder"
        )


def begin_anew(config: RunConfig) -> None:
    """Leaves nothing of an earlier course in the folder."""
    folder = config.run.folder
    for name in OWNED:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    before = stored_config(folder)
    for name, settings in MADE_OF.items():
        same = (
            before is not None
            and before.run.seed == config.run.seed
            and before.model_dump(include=settings) == config.model_dump(include=settings)
        )
        if not same:
            shutil.rmtree(folder / name, ignore_errors=True)


def stored_config(folder: Path) -> RunConfig | None:
    """The configuration that a folder was last run with; None where it cannot be read any more."""
    try:
        return RunConfig.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def refuse_another(config: RunConfig, manifest: Manifest) -> None:
    """A course goes on under its own settings only; the line names the first that differs."""
    if manifest.config_hash == config.hash():
        return
    folder = config.run.folder
    before = stored_config(folder)
    if (
        before is not None and before.hash() == config.hash()
    ):  # the manifest's was counted by an earlier version of this program
        return
    found = changes(before, config) if before is not None else []
    which = f": {found[0]}{f', and {len(found) - 1} more' if len(found) > 1 else ''}" if found else ""
    raise UserError(
        f"{folder / MANIFEST}: belongs to another configuration{which}: give the run another run.folder, with --fork {folder} to"
        " begin from its weights, or start anew with --resume never"
    )


def next_generation(folder: Path, manifest: Manifest | None) -> int:
    """Above every one that was ever begun here: a resume that was killed before its first checkpoint has used its number up."""
    if manifest is None:
        return 1
    try:
        begun = [manifest.generation, *(stored.generation for stored in stored_steps(folder / TRAJECTORIES_FOLDER))]
        events = read_events(folder / EVENTS_FILE).events if (folder / EVENTS_FILE).exists() else []
    except ValueError as error:
        raise UserError(f"{error}: bring the file back, or begin another run with --fork {folder}") from None
    begun += [event["generation"] for event in events if event.kind is EventKind.RESUMED]
    return max(begun) + 1


def _newest(folder: Path, say: Callable[[str], None]) -> Manifest | None:
    """The run's manifest. Where it is damaged or missing: that of its newest whole checkpoint."""
    try:
        return open_manifest(folder) or _newest_beside(folder)
    except UserError:
        found = _newest_beside(folder)
        if found is None:
            raise
        say(f"warning: {folder / MANIFEST} is damaged: going on from the newest checkpoint that is whole, of step {found.step}")
        return found


def _newest_beside(folder: Path) -> Manifest | None:
    """Of checkpoints that a killed run had sealed, but whose manifest had not become the run's yet."""
    found = [
        (manifest, path) for path in (folder / CHECKPOINTS).glob("step-*") if (manifest := _own_manifest(path)) is not None
    ]
    found.sort(key=lambda each: (each[0].generation, each[0].step), reverse=True)
    return next((manifest for manifest, path in found if not _damage(path)), None)  # whose every byte that reads: newest first


def _state_of(folder: Path, checkpoint: str, newest: Manifest) -> Manifest | None:
    """The state that a checkpoint was taken of; checkpoints that are later, or gone, are not its."""
    manifest = _own_manifest(folder / checkpoint)
    if manifest is None:
        return None
    kept = {record.folder for record in newest.checkpoints} | {checkpoint}
    records = [record for record in manifest.checkpoints if record.folder in kept]
    return manifest.model_copy(update={"checkpoints": records, "generation": max(manifest.generation, newest.generation)})


def _own_manifest(checkpoint: Path) -> Manifest | None:
    """That of a checkpoint; None also where it is damaged: then another checkpoint is gone on from."""
    try:
        return open_manifest(checkpoint)
    except UserError:
        return None


def _refuse_lost_events(folder: Path, state: Manifest) -> None:
    """What the audit says of a run, and what a resume may roll out no more, stands in its events alone."""
    path = folder / EVENTS_FILE
    found = path.read_bytes().count(b"\n") if path.exists() else 0
    if found < state.events:
        raise UserError(
            f"{path}: has {found:,} events, and the state of step {state.step} counts {state.events:,}: bring the file back, or"
            f" begin another run from these weights with --fork {folder}"
        )


def _damage(checkpoint: Path) -> str:
    """Why a checkpoint cannot be continued from; empty where it can."""
    try:
        check_whole(checkpoint)
    except CheckpointRefused as error:
        return str(error)
    return ""


def _there_are(folder: Path) -> str:
    names = sorted(path.name for path in (folder / CHECKPOINTS).glob("step-*") if path.suffix != UNFINISHED)
    return f"; there are {', '.join(names)}" if names else ""
