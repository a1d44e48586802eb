"""From a configuration to a finished run: prepare, start, loop, sum up; and end clean wherever it is interrupted."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
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
from medr3.run.manifest import Manifest, read_manifest, write_json
from trajectories.events import EventKind, EventLog

FULL = (errno.ENOSPC, errno.EDQUOT)
RESUMABLE_EXIT = 3  # the run failed, and the same command goes on from its last checkpoint
INTERRUPTED_EXIT = 130  # as shells report Ctrl-C

OWNED = (
    "manifest.json",
    "events.jsonl",
    "metrics.jsonl",
    "status.json",
    "summary.json",
    "report.html",
    "trajectories",
    "checkpoints",
    "wandb",
    "ray_train",
)


def train(config: RunConfig, resume: str) -> int:
    """Runs to the end and returns the exit code: 0 done or stopped on request, 3 failed but resumable, 130 interrupted."""
    folder = config.run.folder = config.run.folder.resolve()
    preflight(folder, http_port=config.retrieval.http_port)
    manifest = _open_folder(folder, config, resume)
    if manifest is not None and manifest.controller["finished"] and (folder / "summary.json").exists():
        print(closing_table(json.loads((folder / "summary.json").read_text())))
        print(f"this run has ended, its report is {folder / 'report.html'}; --resume never trains it anew")
        return 0
    try:
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
        with suppress(OSError):  # a full disk takes no last words either
            _record_end(folder, "failed", reason)
        return RESUMABLE_EXIT


def _open_folder(folder: Path, config: RunConfig, resume: str) -> Manifest | None:
    """The manifest to resume from, or None with a folder that holds nothing of an earlier course."""
    manifest = read_manifest(folder, config.hash()) if resume == "auto" else None
    if manifest is None:
        for name in OWNED:  # the index and the cold start depend on the configuration alone and are kept if it is the same
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        _keep_if_same(folder, config)
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return manifest


def _keep_if_same(folder: Path, config: RunConfig) -> None:
    parts = {"index": {"world", "retrieval"}, "cold_start": {"world", "retrieval", "cold_start"}}
    try:
        before = RunConfig.model_validate(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError):
        before = None
    for name, settings in parts.items():
        same = (
            before is not None
            and before.run.seed == config.run.seed
            and before.model_dump(include=settings) == config.model_dump(include=settings)
        )
        if not same:
            shutil.rmtree(folder / name, ignore_errors=True)


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
        manifest = read_manifest(config.run.folder, config.hash())  # rolled back: go on from there


def _reason(error: BaseException) -> str:
    """The first real cause in a group of errors, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk is full ({error.filename or error.strerror}): make room there"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _last(folder: Path) -> str:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text()) if (folder / "manifest.json").exists() else {}
    return f"step {manifest['step']}" if manifest else "the start"


def _record_end(folder: Path, state: str, reason: str) -> None:
    """What `medr3 status` and the report will say of a run that did not reach its end."""
    path = folder / "status.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, known | {"state": state, "reason": reason, "time": time.time()})
    if reason and (folder / "events.jsonl").exists():
        with EventLog(folder / "events.jsonl") as events:
            events.append(EventKind.FAILED, reason=reason)
