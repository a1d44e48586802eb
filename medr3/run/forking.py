"""A fork: a new run that begins with the weights and the state of another one's checkpoint, under settings that may differ.

::

    RUN@STEP ─▶ what may differ is checked ─▶ copied: checkpoint, cold start, index, questions
                                         └─▶ its own from here on: events, rows, metrics, ledger, tracker ─▶ manifest, written last

What was open in the parent at that step is open in the fork as well, under its own rules, so no question that was drawn is lost.
Phases, plateau probes and the held-out reports so far are inherited; tokens, seconds and the fate of groups are counted anew.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.checkpoint_folder import CheckpointRefused, check_whole, unfinished
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.ops.local import find_run
from medr3.run.manifest import MANIFEST, Manifest, Parent, open_manifest, write_manifest
from medr3.run.resuming import CONFIG, MADE_OF, stored_config
from medr3.run.settings import changes, forbidden
from medr3.run.snapshots import refuse_damaged
from trajectories.audit import EVENTS_FILE
from trajectories.durable import sync
from trajectories.events import EventKind, EventLog
from trajectories.groups import State

COUNTED_ANEW: dict[str, Any] = {"model_tokens": 0, "rollout_s": 0.0, "wall_s": 0.0, "seconds": {}, "rollbacks": []}


@dataclass(frozen=True)
class Fork:
    """What `--fork RUN[@STEP]` names; without a step, the run's newest checkpoint."""

    run: Path
    step: int | None = None
    new_index: bool = False

    def __str__(self) -> str:
        return f"--fork {self.run}" if self.step is None else f"--fork {self.run}@{self.step}"


@dataclass(frozen=True)
class Origin:
    """Where a fork begins: the parent's settings, and the state of one of its checkpoints."""

    parent: Path
    state: Manifest
    settings: RunConfig


def begun_as(fork: Fork, manifest: Manifest) -> None:
    """Refuses to take a run that is there already for the fork that was asked for."""
    origin = manifest.forked_from
    if origin is None or fork.step not in (None, origin.step):
        is_there = "a run that is no fork" if origin is None else f"a fork of {origin.run_id} at step {origin.step}"
        raise UserError(f"{fork}: run.folder has {is_there}: name another run.folder")


def find_origin(fork: Fork, config: RunConfig) -> Origin:
    """The checkpoint to begin from, checked against the settings of the run that is to begin; changes nothing."""
    run = fork.run.resolve()
    newest, before = open_manifest(run), stored_config(run)
    if newest is None or before is None:
        raise UserError(f"{fork}: {run} has no checkpoint yet, or no {CONFIG}: name the folder of a run that has both")
    if config.run.folder.resolve() == run:
        raise UserError(f"{fork}: a fork needs a folder of its own: add run.folder=…")
    kept = {record.step: record.folder for record in newest.checkpoints}
    folder = kept.get(newest.step if fork.step is None else fork.step)
    if folder is None:
        raise UserError(f"{fork}: kept are the checkpoints of steps {', '.join(map(str, sorted(kept)))}")
    try:
        check_whole(run / folder)
    except CheckpointRefused as error:
        raise UserError(f"{fork}: {error}") from None
    state = open_manifest(run / folder)
    if state is None:
        raise UserError(f"{fork}: {folder} has no manifest of its own: fork another step")
    refuse_damaged(state, before, run / folder / MANIFEST)
    if lines := forbidden(before, config, new_index=fork.new_index):
        raise UserError("\n".join(f"{fork}: {line}" for line in lines))
    if state.controller["phase"] not in [phase.name for phase in config.curriculum.phases]:
        raise UserError(
            f"{fork}: is in phase {state.controller['phase']!r}, which curriculum.phases does not have: keep it there"
        )
    return Origin(run, state, before)


def begin_fork(origin: Origin, config: RunConfig, *, new_index: bool = False) -> Manifest:
    """Fills the new run's folder; whatever ends this process before the last line leaves a folder without a manifest."""
    folder, state = config.run.folder, origin.state
    for name in MADE_OF:
        source = origin.parent / name
        if source.is_dir() and not (name == "index" and new_index):
            shutil.rmtree(folder / name, ignore_errors=True)
            _copy(source, folder / name)
    _copy_checkpoint(origin.parent / state.checkpoint, folder / state.checkpoint)
    phases, record = [phase.name for phase in config.curriculum.phases], state.checkpoints[-1]
    open_groups = [group for group in state.ledger["open"] if group["phase"] in phases]
    parent = Parent(
        run_id=state.run_id, step=state.step, config_hash=state.config_hash,
        changed=[change.name for change in changes(origin.settings, config)],
    )  # fmt: skip
    position = {"phase_index": phases.index(record.phase) if record.phase in phases else 0}
    manifest = state.model_copy(
        update={
            "run_id": config.run.name,
            "generation": 0,  # the first process of this run begins generation 1
            "checkpoints": [record.model_copy(update=position)],
            "config_hash": config.hash(),
            "index_hash": "" if new_index else state.index_hash,
            "tracker_id": "",
            "events": _begin_events(folder, config, parent, state, open_groups),
            "ledger": _ledger(state.ledger, open_groups),
            "sampler": _sampler(state.sampler, config),
            "controller": state.controller | {"finished": False},
            "progress": state.progress | COUNTED_ANEW,
            "forked_from": parent,
        }
    )
    write_manifest(folder / state.checkpoint, manifest)
    write_manifest(folder, manifest)
    return manifest


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Without the parent's manifest: a fork that is killed before its own is written must not be taken for the parent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(unfinished(target), ignore_errors=True)
    _copy(source, unfinished(target), leave_out=MANIFEST)
    os.replace(unfinished(target), target)
    sync(target.parent)


def _copy(source: Path, target: Path, leave_out: str = "") -> None:
    """A folder, on the disk when this returns. The parent may go on meanwhile, and remove its own at any time."""
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(leave_out))
    except (FileNotFoundError, shutil.Error) as error:
        if source.is_dir() and isinstance(error, shutil.Error):
            raise
        raise UserError(f"{source} went while it was copied: its run goes on, so fork a newer step") from None
    for path in (*target.rglob("*"), target):
        sync(path)


def _begin_events(folder: Path, config: RunConfig, parent: Parent, state: Manifest, groups: list[dict[str, Any]]) -> int:
    """The new run's first events: whose it is, the checkpoint that it has, and the groups that it takes over."""
    with EventLog(folder / EVENTS_FILE) as events:
        events.append(
            EventKind.RUN_STARTED, run_id=config.run.name, generation=0, seed=config.run.seed,
            max_staleness=config.rollout.max_staleness, config_hash=config.hash(), forked_from=parent.model_dump(mode="json"),
        )  # fmt: skip
        events.append(EventKind.PHASE_ENTERED, phase=state.controller["phase"], step=state.step)
        for group in groups:
            events.append(
                EventKind.ADMITTED, group_id=group["group_id"], question_id=group["question_id"], phase=group["phase"]
            )
        events.append(EventKind.CHECKPOINT, step=state.step, folder=state.checkpoint)
        events.sync()
        return events.position


def _ledger(parent: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """An account that begins with the groups that are open; all of them wait for an engine."""
    waiting = [group | {"state": State.WAITING.value, "failures": 0} for group in groups]
    counts = {"admitted": len(waiting), "requeued": 0, "late": 0, "last_step": parent["last_step"]}
    return counts | {"outcomes": [], "ages": [], "open": waiting}


def _sampler(parent: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """The data cursor goes on; pools of phases that are sampled otherwise now obey the new rule."""
    rules = {phase.name: phase.sampling.model_dump(mode="json") for phase in config.curriculum.phases}
    pools = {
        name: pool | {"sampling": rules[name.partition("|")[0]]}
        for name, pool in parent["pools"].items()
        if name.partition("|")[0] in rules
    }
    return parent | {"pools": pools}


def named_fork(text: str | None, *, new_index: bool = False) -> Fork | None:
    """What RUN or RUN@STEP means; a run may go by its name below runs/."""
    if text is None:
        if new_index:
            raise UserError("--new-index: belongs to --fork: a run that resumes keeps its index")
        return None
    run, at, step = text.rpartition("@") if "@" in text else (text, "", "")
    if not run or (at and not step.isdigit()):
        raise UserError(f"--fork {text}: is not RUN or RUN@STEP, such as runs/demo@40")
    return Fork(find_run(run), int(step) if at else None, new_index)
