"""The driver's own state in a manifest, held against its types before anything starts: damage is one line, and told at once.

A manifest comes back from a disk, a mirror or somebody's copy. A field that is gone, or of another type, must not show only where
it is restored, minutes later and beside engines that have started, or in the step that reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from curriculum.controller import Controller
from curriculum.phase_parts import Sampling
from curriculum.plateau import Probe
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.run.manifest import Manifest
from medr3.run.progress import Progress
from tasks.world import Universe
from trajectories.event_fields import LARGEST
from trajectories.groups import Group, LedgerError
from trajectories.ledger import Ledger

Count = Annotated[int, Field(ge=-1, le=LARGEST)]  # -1: none so far


class _Ledger(BaseModel):
    admitted: Count
    requeued: Count
    late: Count
    last_step: Count
    outcomes: list[tuple[str, str, Count]]
    ages: list[tuple[Count, Count]]
    open: list[Group]


# Name, right ones, attempts, streak, draw.
_Record = tuple[str, float, float, Annotated[int, Field(ge=-LARGEST, le=LARGEST)], Count]


class _Pool(BaseModel):
    sampling: Sampling
    drawn: Count
    active: list[_Record]
    retired: list[_Record]


class _Sampler(BaseModel):
    turns: dict[str, dict[str, Annotated[int, Field(ge=0, le=LARGEST)]]]
    cursors: dict[str, Annotated[int, Field(ge=0, le=LARGEST)]]
    pools: dict[str, _Pool]


class _Signal(BaseModel):
    reference: list[float]
    recent: list[float]
    off: bool


class _Collapse(BaseModel):
    signals: dict[str, _Signal]
    since: Count | None
    bad_steps: Count


class _Controller(BaseModel):
    phase: str
    finished: bool
    steps_in_phase: Count
    probed_at: Count
    last_step: Count
    rewards: list[float]
    probes: list[Probe]
    held: bool
    refusals: dict[str, Count]
    regressions: dict[str, Count]
    rollbacks: dict[str, Count]
    levels: dict[str, float]
    drops: dict[str, Count]
    collapse: _Collapse


class _Progress(BaseModel):
    step: Count
    groups: Count
    entered_at_step: Count
    model_tokens: Count
    rollout_s: float
    wall_s: float
    seconds: dict[str, float]
    last_probe: dict[str, dict[str, float]]
    heldout_by_phase: dict[str, dict[str, dict[str, Any]]]
    phases: list[dict[str, Any]]
    rollbacks: list[dict[str, Any]]


class _State(BaseModel):
    ledger: _Ledger
    sampler: _Sampler
    controller: _Controller
    progress: _Progress


def refuse_damaged(manifest: Manifest, config: RunConfig, path: Path) -> None:
    """One UserError, which names the place, where `manifest`, read from `path`, holds a state that nothing could go on from."""
    if problem := _problem(manifest, config):
        raise _damaged(path, problem)


def refuse_unknown_questions(manifest: Manifest, universe: Universe, path: Path) -> None:
    """The same where it asks what nobody can ask; told apart because questions take a moment to open."""
    pools = [pool[part] for pool in manifest.sampler["pools"].values() for part in ("active", "retired")]
    asked = [group["question_id"] for group in manifest.ledger["open"]] + [name for pool in pools for name, *_ in pool]
    for question_id in asked:
        try:
            universe.question(question_id)
        except (LookupError, ValueError):
            raise _damaged(path, f"there is no question {question_id[:200]!r}") from None


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: the state that it holds is damaged: {problem}: go on from a checkpoint with --resume PATH")


def _problem(manifest: Manifest, config: RunConfig) -> str:
    state = {part: getattr(manifest, part) for part in _State.model_fields}
    try:
        _State.model_validate_json(json.dumps(state, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}"
    except (ValueError, RecursionError):  # not finite, or nested without end
        return "it has numbers or depths that no run writes"
    try:
        _restore(manifest, config)
    except (ValueError, TypeError, LedgerError) as error:
        return " ".join(str(error).split())[:300]
    return _contradiction(manifest)


def _restore(manifest: Manifest, config: RunConfig) -> None:
    """All that knows how to read its own part; the sampler's is types alone."""
    Ledger(config.ledger_rules()).restore(manifest.ledger)
    Controller(config.curriculum).restore(manifest.controller)
    Progress.restored(manifest.progress)


def _contradiction(manifest: Manifest) -> str:
    ledger, progress = manifest.ledger, manifest.progress
    names = [group["group_id"] for group in ledger["open"]]
    if len(set(names)) < len(names):
        return "ledger.open: a group is there twice"
    if ledger["admitted"] != sum(n for *_, n in ledger["outcomes"]) + len(names):
        return f"ledger.admitted: {ledger['admitted']} groups, and their endings and those that are open are not as many"
    if (last := max(ledger["last_step"], manifest.controller["last_step"])) > manifest.step:
        return f"last_step: {last}, in the state of step {manifest.step}"
    if progress["step"] != manifest.step:
        return f"progress.step: {progress['step']}, in the state of step {manifest.step}"
    if progress["groups"] < ledger["admitted"]:
        return f"progress.groups: {progress['groups']}, of which {ledger['admitted']} were admitted"
    return ""
