"""Training state on disk, written while the training goes on; any number of ranks reads it. All safetensors, nothing pickled.

::

    worker ─ stage: copy own rows ─▶ answers the order, trains on
                 └─ thread: write ▶ fsync ▶ tell the exchange ─┐ every rank
    driver ◀── client.checkpoint: renames the folder ◀─────────┘ then writes its manifest

The thread takes part in no collective: a rank writes what it holds, and it is the driver that waits for all of them. So a
dead rank can block nobody, and there is no second process group to keep in step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.checkpoint_folder import CheckpointRefused, rank_files, read_state, unfinished, write_state
from learner.placement import first_row, local_rows
from learner.state_hash import state_hash
from learner.tensor_files import Entry, TensorFiles, write_tensors
from learner.trainer import PolicyTrainer

WEIGHTS, MOMENTS, STEP = "weights", ("exp_avg", "exp_avg_sq"), "step"
REFERENCE = "reference"
RANDOM, RANDOM_ON_GPU = "random_state", "random_state_gpu"


class _Rows(NamedTuple):
    """What this rank holds of one tensor, live."""

    tensor: Tensor
    first: int
    common: bool = False  # all ranks hold it alike


class CheckpointWriter:
    """Writes one rank's part of a checkpoint in a thread of its own, from a copy that is reused for the next one."""

    def __init__(self, done: Callable[[str, str], None]) -> None:
        self._done = done  # called in the thread with the folder, and with the reason if it was not written
        self._copy: dict[str, Tensor] = {}
        self._thread: Thread | None = None

    def start(self, trainer: PolicyTrainer, folder: Path) -> None:
        """Returns when this rank's tensors are copied to main memory: from then on they may change."""
        self.wait()
        rows = _rows(trainer)
        self._copy = {name: _copied(row.tensor, self._copy.get(name)) for name, row in rows.items()}
        entries = [
            Entry(name, copy.dtype, tuple(copy.shape), rows[name].first, copy.detach)
            for name, copy in self._copy.items()
            if len(copy) and (trainer.rank == 0 or not rows[name].common)  # a rank may hold no row of a small tensor
        ]
        state = describe(trainer) | {
            "ranks": trainer.ranks,
            "skipped_in_a_row": trainer.skipped_in_a_row,
            "reference_moved": trainer.reference_moved,
        }
        self._thread = Thread(target=self._write, args=(folder, trainer.rank, entries, state), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is on disk, or is known to have failed."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, folder: Path, rank: int, entries: list[Entry], state: dict[str, Any]) -> None:
        failure = ""
        try:
            written = unfinished(folder)
            written.mkdir(parents=True, exist_ok=True)
            write_tensors(rank_files(written, state["ranks"])[rank], entries)
            if rank == 0:
                state["hash"] = state_hash(self._copy)  # of this rank's rows; a resume tells what it loaded
                write_state(written, state)
        except Exception as error:  # a thread has nobody to raise to: the reason travels as text
            failure = f"checkpoint {folder}: {type(error).__name__}: {' '.join(str(error).split())}"
        self._done(str(folder), failure)


def load_training_state(trainer: PolicyTrainer, checkpoint: Path) -> None:
    """Reads a checkpoint into the trainer, resharded to the ranks there are now. Whatever is wrong is found before any change."""
    state = read_state(checkpoint)
    _refuse_another_model(checkpoint, state, describe(trainer))
    files = TensorFiles(rank_files(checkpoint, state["ranks"]))
    trainer.reference_moved = trainer.reference is not None and state["reference_moved"]
    rows = {name: held for name, held in _rows(trainer).items() if not name.startswith(RANDOM)}
    for name in rows:
        if name not in files.names:
            raise CheckpointRefused(f"{checkpoint} lacks {name}: resume from another checkpoint")
    for name, (tensor, first, _) in rows.items():
        if len(tensor):
            tensor.copy_(files.rows(name, first, len(tensor)))
    trainer.skipped_in_a_row = state["skipped_in_a_row"]
    # Nothing in a step draws numbers that depend on the rank count, so more ranks than before may repeat the states there are.
    rank = trainer.rank % state["ranks"]
    torch.set_rng_state(files.whole(f"{RANDOM}/{rank}"))
    if trainer.device.type == "cuda" and f"{RANDOM_ON_GPU}/{rank}" in files.names:
        torch.cuda.set_rng_state(files.whole(f"{RANDOM_ON_GPU}/{rank}"), trainer.device)


def held_state(trainer: PolicyTrainer) -> str:
    """The hash of what this rank holds now: after a resume by as many ranks, that of the checkpoint."""
    return state_hash({name: row.tensor for name, row in _rows(trainer).items()})


def describe(trainer: PolicyTrainer) -> dict[str, Any]:
    """What a checkpoint must have been made of to be continued here."""
    causal_lm, lora = trainer.policy.causal_lm, trainer.config.lora
    return {
        "architecture": type(causal_lm).__name__,
        "vocabulary": causal_lm.config.vocab_size,
        "lora": None if lora is None else lora.model_dump(mode="json"),
        "trained": {
            part: {name: list(parameter.shape) for name, parameter in module.named_parameters() if parameter.requires_grad}
            for part, (module, _) in trainer.trained.items()
        },
    }


def stored_name(part: str, kind: str, parameter: str) -> str:
    """Such as policy/weights/causal_lm.model.norm.weight."""
    return f"{part}/{kind}/{parameter}"


def _rows(trainer: PolicyTrainer) -> dict[str, _Rows]:
    """All that is saved of this rank, under stored names. What is frozen is left to the model's own folder."""
    rows = {f"{RANDOM}/{trainer.rank}": _Rows(torch.get_rng_state(), 0)}
    if trainer.device.type == "cuda":
        rows[f"{RANDOM_ON_GPU}/{trainer.rank}"] = _Rows(torch.cuda.get_rng_state(trainer.device), 0)
    for part, (module, optimizer) in trainer.trained.items():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            first, moments = first_row(parameter), optimizer.state[parameter]
            rows[stored_name(part, WEIGHTS, name)] = _Rows(local_rows(parameter), first)
            rows |= {stored_name(part, moment, name): _Rows(local_rows(moments[moment]), first) for moment in MOMENTS}
            rows[stored_name(part, STEP, name)] = _Rows(moments[STEP].view(1), 0, common=True)
    if trainer.reference is not None and trainer.reference_moved:
        rows |= {
            stored_name(REFERENCE, WEIGHTS, name): _Rows(local_rows(parameter), first_row(parameter))
            for name, parameter in trainer.reference.named_parameters()
        }
    return rows


def _copied(tensor: Tensor, last: Tensor | None) -> Tensor:
    """Into the memory of the last checkpoint's copy. Not pinned: torch rounds every pinned block up to a power of two."""
    if last is None or last.shape != tensor.shape:
        last = torch.empty(tensor.shape, dtype=tensor.dtype)
    return last.copy_(tensor)


def _refuse_another_model(checkpoint: Path, stored: dict[str, Any], here: dict[str, Any]) -> None:
    for field in ("architecture", "vocabulary", "lora"):
        if stored[field] != here[field]:
            raise CheckpointRefused(f"{checkpoint} is of another model: its {field} is {stored[field]}, here {here[field]}")
    for part in sorted({*stored["trained"], *here["trained"]}):
        if part not in stored["trained"] or part not in here["trained"]:
            where = "there only" if part in stored["trained"] else "here only"
            raise CheckpointRefused(f"{checkpoint} is of another training: a {part} is trained {where}")
        theirs, ours = stored["trained"][part], here["trained"][part]
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                shapes = f"{theirs.get(name, 'absent')}, here {ours.get(name, 'absent')}"
                raise CheckpointRefused(f"{checkpoint} is of another model: its {part}'s {name} is {shapes}")
