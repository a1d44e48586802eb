"""The run's second place, kept up beside the training: one state at a time is sent, the newest that is sealed.

A place that does not answer costs a warning and no step: the next checkpoint tries again, and sends what is missing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.run.manifest import MANIFEST, Manifest, manifest_bytes, open_manifest
from medr3.storage import Mirror, State, StorageFailed

# A sender that hangs outlives its course by a roll-back: a second one beside it would remove what the other sends.
_SENDING = threading.Lock()
GRACE_S = 110.0  # spot machines go two minutes after their notice


class Mirroring:
    """Does nothing where no mirror is configured."""

    def __init__(self, config: RunConfig, say: Callable[[str], None]) -> None:
        self._folder, self._say = config.run.folder, say
        self._mirror = Mirror(config.run.mirror) if config.run.mirror else None
        self._next: Manifest | None = None
        self._task: asyncio.Task[None] | None = None
        self.reads = ""  # the checkpoint that is being sent, relative to the run's folder

    def send(self, manifest: Manifest) -> None:
        """Returns at once. A state that waits gives its turn to a newer one."""
        if self._mirror is None:
            return
        self._next = manifest
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all(self._mirror))

    async def finish(self, within_s: float = GRACE_S) -> None:
        """Until the newest state is there, or the time is up."""
        if self._task is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(self._task), within_s)
        except TimeoutError:
            self._say(f"warning: run.mirror is behind: {self.reads} was not sent within {within_s:.0f} s")

    async def stop(self, within_s: float) -> None:
        """What is under way may end in this time; nothing new begins."""
        self._next = None
        await self.finish(within_s)

    async def _send_all(self, mirror: Mirror) -> None:
        while self._next is not None:
            manifest, self._next = self._next, None
            self.reads = manifest.checkpoint
            try:
                await _beside(mirror.send, self._folder, state_of(manifest))
            except (StorageFailed, OSError) as error:
                self._say(f"warning: run.mirror has no copy of step {manifest.step}: {error}")
            finally:
                self.reads = ""


async def _beside(send: Callable[[Path, State], None], folder: Path, state: State) -> None:
    """In a thread that no exit waits for: a server that hangs must not hold a process that is told to end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            with _SENDING:
                send(folder, state)
        except BaseException as raised:  # raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="mirror", daemon=True).start()
    await done


def use_mirror(config: RunConfig, *, begin_anew: bool, say: Callable[[str], None] = print) -> None:
    """Before a run starts: an empty folder is filled from its second place; a course that begins anew leaves nothing there."""
    run = config.run
    try:
        mirror = Mirror(run.mirror)
        found = mirror.newest()
        if found is not None and found.run_id != run.name:
            raise UserError(f"run.mirror: {run.mirror} holds the run {found.run_id}: give {run.name} a place of its own")
        if begin_anew:
            mirror.forget()
        elif found is not None and not (run.folder / MANIFEST).exists():
            say(f"{run.folder} has no {MANIFEST}: bringing step {found.step} from {run.mirror}")
            mirror.fetch(run.folder)
        elif found is None and not (run.folder / MANIFEST).exists() and mirror.lost:
            raise UserError(f"run.mirror: {run.mirror} holds a run, but no inventory of it is whole: --resume never removes it")
    except StorageFailed as error:
        raise UserError(f"run.mirror: {error}") from None


async def send_last(config: RunConfig, say: Callable[[str], None]) -> None:
    """What a run writes after its last checkpoint: summary and report."""
    manifest = open_manifest(config.run.folder)
    if config.run.mirror and manifest is not None:
        mirroring = Mirroring(config, say)
        mirroring.send(manifest)
        await mirroring.finish()


def state_of(manifest: Manifest) -> State:
    """What of a manifest the storage has to know."""
    checkpoints = [record.folder for record in manifest.checkpoints]
    return State(manifest.run_id, manifest.step, manifest.generation, checkpoints, manifest_bytes(manifest))
