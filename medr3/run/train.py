"""From a configuration to a finished run: prepare, start, loop, sum up; and end clean wherever it is interrupted."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.observe.summary import closing_table
from medr3.ops.preflight import preflight
from medr3.run import resuming
from medr3.run.forking import Fork, begin_fork, begun_as, find_origin
from medr3.run.manifest import Manifest, open_manifest, write_json
from medr3.run.mirroring import use_mirror
from medr3.run.resuming import CONFIG, begin_anew, place, refuse_another_s_folder
from medr3.run.sole_driver import sole_driver
from medr3.run.unheard import survive_readers
from medr3.run_shapes import read_summary
from security.hiding import scrub
from trajectories.events import EventKind, EventLog

AUTO, NEVER = "auto", "never"
FULL = (errno.ENOSPC, errno.EDQUOT)
RESUMABLE_EXIT = 3  # the run failed, and the same command goes on from its last checkpoint
INTERRUPTED_EXIT = 130  # as shells report Ctrl-C


def train(config: RunConfig, resume: str, fork: Fork | None = None) -> int:
    """Runs to the end and returns the exit code: 0 done or stopped on request, 3 failed but resumable, 130 interrupted.

    `resume` is auto, never, or a path (`medr3.run.resuming`); a `fork` begins the run where its folder holds none yet.
    """
    survive_readers()
    checkpoint = _choose_folder(config, resume)
    refuse_another_s_folder(config.run.folder)
    preflight(config.run.folder, http_port=config.retrieval.http_port)
    check_index(config)
    with sole_driver(config.run.folder):
        return _train_alone(config, resume, checkpoint, fork)


def _train_alone(config: RunConfig, resume: str, checkpoint: str, fork: Fork | None) -> int:
    folder = config.run.folder
    try:
        manifest = _open_folder(config, resume, checkpoint, fork)
        if manifest is not None and manifest.controller["finished"] and (folder / "summary.json").exists():
            print(closing_table(read_summary(folder)))
            print(f"this run has ended, its report is {folder / 'report.html'}; --resume never trains it anew")
            return 0
        return asyncio.run(_train(config, manifest))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"medr3: interrupted; the same command goes on from {_last(folder)}", file=sys.stderr)
        _record_end(folder, "interrupted", "")
        return INTERRUPTED_EXIT
    except UserError:
        raise
    except BaseException as error:
        reason = _reason(error)
        print(f"medr3: the run failed: {reason}; the same command goes on from {_last(folder)}", file=sys.stderr)
        _record_end(folder, "failed", reason)
        return RESUMABLE_EXIT


def check_index(config: RunConfig) -> None:
    """Told before Ray is started, which takes its time."""
    if config.retrieval.index and not Path(config.retrieval.index).is_dir():
        raise UserError(f"retrieval.index: {config.retrieval.index} does not exist: build it, or leave retrieval.index empty")


def _choose_folder(config: RunConfig, resume: str) -> str:
    """The run's folder is the configuration's, or the one that a path names; returns the checkpoint that the path names, if any."""
    checkpoint = ""
    if resume not in (AUTO, NEVER):
        config.run.folder, checkpoint = place(Path(resume))
    config.run.folder = config.run.folder.resolve()
    return checkpoint


def _open_folder(config: RunConfig, resume: str, checkpoint: str, fork: Fork | None) -> Manifest | None:
    """The state to go on from, or None with a folder that holds nothing of an earlier course."""
    folder = config.run.folder
    if config.run.mirror:
        use_mirror(config, begin_anew=resume == NEVER)
    manifest = resuming.resume(config, checkpoint) if resume != NEVER else None
    if manifest is not None and fork is not None:
        begun_as(fork, manifest)
    if manifest is None:
        origin = find_origin(fork, config) if fork else None
        begin_anew(config)
        manifest = begin_fork(origin, config, new_index=fork.new_index) if fork and origin else None
    write_json(folder / CONFIG, config.model_dump(mode="json"))
    return manifest


async def _train(config: RunConfig, manifest: Manifest | None) -> int:
    import ray

    from medr3.run.course import Course

    stop, task = asyncio.Event(), asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        """The first signal ends the run after its step, with a checkpoint; the second, or one before the first step, at once."""
        if stop.is_set() or not course.training:
            task.cancel()
        else:
            print("medr3: ending after this step; once more to end at once", file=sys.stderr)
            stop.set()

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked_to_stop)

    while True:
        course = Course(config, manifest, stop, on_ray_started=listen)  # starting Ray puts its own handlers in place
        listen()
        try:
            code = await course.run()
        finally:
            await asyncio.to_thread(ray.shutdown)
        if code is not None:
            return code
        manifest = open_manifest(config.run.folder)  # rolled back: go on from there


def _reason(error: BaseException) -> str:
    """The first real cause in a group of errors, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk is full ({error.filename or error.strerror}): make room there"
    text = " ".join(scrub(str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _last(folder: Path) -> str:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text()) if (folder / "manifest.json").exists() else {}
    return f"step {manifest['step']}" if manifest else "the start"


def _record_end(folder: Path, state: str, reason: str) -> None:
    """What `medr3 status` and the report will say of a run that did not reach its end."""
    with suppress(OSError, ValueError):  # a full disk takes no last words, and damaged events none either
        _write_end(folder, state, reason)


def _write_end(folder: Path, state: str, reason: str) -> None:
    path = folder / "status.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError, TypeError):  # a damaged file is written anew
        known = dict(json.loads(path.read_text()))
    write_json(path, known | {"state": state, "reason": reason, "time": time.time()})
    if reason and (folder / "events.jsonl").exists():
        with EventLog(folder / "events.jsonl") as events:
            events.append(EventKind.FAILED, reason=reason)
