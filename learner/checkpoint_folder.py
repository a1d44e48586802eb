"""A checkpoint on disk. Under its final name it is complete; until then it is called `<name>.unfinished`. Knows no torch.

::

    step-000010-generation-1/
        state.json                        what was trained, by how many ranks: enough to refuse another model
        rank-00000-of-00002.safetensors   this rank's rows of weights and moments, and its random state
        rank-00001-of-00002.safetensors
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from learner.checked_file import damage
from trajectories.durable import checksum_of, sync

STATE, CHECKSUM = "state.json", "checksum"
UNFINISHED = ".unfinished"


class CheckpointRefused(Exception):
    """A checkpoint that cannot be continued from; the text says which file or which setting is the reason."""


def unfinished(folder: Path) -> Path:
    """Where a checkpoint is written."""
    return folder.with_name(folder.name + UNFINISHED)


def rank_files(folder: Path, ranks: int) -> list[Path]:
    """The tensors of a checkpoint, by rank."""
    return [_rank_file(folder, rank, ranks) for rank in range(ranks)]


def _rank_file(folder: Path, rank: int, ranks: int) -> Path:
    return folder / f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


def read_state(folder: Path) -> dict[str, Any]:
    """What a complete checkpoint says of itself."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except FileNotFoundError:
        raise CheckpointRefused(f"no checkpoint in {folder}: it has no {STATE}; resume from a folder of checkpoints/") from None
    except (ValueError, RecursionError):
        raise _changed(folder) from None
    if not isinstance(state, dict) or state.pop(CHECKSUM, None) not in (None, checksum_of(state)):
        raise _changed(folder)
    return state


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """What a checkpoint says of itself, with a checksum of its own; on disk when this returns."""
    with (folder / STATE).open("w", encoding="utf-8") as file:
        json.dump({CHECKSUM: checksum_of(state), **state}, file)
        file.flush()
        os.fsync(file.fileno())


def _changed(folder: Path) -> CheckpointRefused:
    return CheckpointRefused(f"{folder / STATE} is cut off or changed: resume from another checkpoint")


def check_whole(folder: Path) -> None:
    """Every file that it speaks of is there with the bytes that were written; what it was made of is checked when it is loaded."""
    ranks = read_state(folder).get("ranks")
    if not isinstance(ranks, int) or ranks < 1:
        raise _changed(folder)
    for rank in range(ranks):  # one after the other: the number may be any
        path = _rank_file(folder, rank, ranks)
        if problem := damage(path):
            raise CheckpointRefused(f"{path} {problem}: resume from another checkpoint")


def complete(folder: Path, ranks: int) -> None:
    """Gives a checkpoint its name, when every rank has written its part."""
    written = unfinished(folder)
    for path in (*rank_files(written, ranks), written / STATE):
        if not path.is_file():
            raise CheckpointRefused(f"{path} is not to be seen here: put the run's folder on storage that all machines share")
    os.replace(written, folder)
    for changed in (folder, folder.parent):  # names are durable only when their folder is
        sync(changed)
