"""A second place for a run: all that a resume needs, under a URL of the local disk, of S3 or of what speaks like it.

::

    files of the run ─▶ objects, none of which is ever written over ─▶ inventory: path, object, length, checksum of each ─▶ what no
                        failed or cut off: tried again                 written last; the newest whole one counts             one names goes

A reader takes an inventory's files and nothing else, and takes them only as they were when it was written. So a sender that is killed
at any moment leaves the state before readable, and a half-sent one is never seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs as fs
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from medr3.errors import UserError
from trajectories.durable import sync

T = TypeVar("T")

ATTEMPTS = 6  # with the waits below a disturbance of half a minute passes unnoticed
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 16.0
CHUNK = 8 * 2**20  # S3 wants parts of 5 MiB or more
INVENTORY = "inventory"
VERSIONS = "versions"  # folder of what changes under its name: by state, so that nothing is written over
# Written once under their names, which no later file has: an object of the same length is the file.
LASTING = ("checkpoints", "cold_start", "index", "questions")
ROWS, LASTING_ROWS = "trajectories", ".parquet"
STATE = ("config.json", "events.jsonl", "metrics.jsonl", "heldout.jsonl", "status.json", "summary.json", "report.html")
MANIFEST = "manifest.json"


class StorageFailed(Exception):
    """The second place did not do what was asked, several times; the text says what, and where."""


class _Gone(Exception):
    """A file of this machine went since it was listed: no disturbance, and nothing to try again."""


class Stored(BaseModel):
    """One file of the run, and the object that holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str  # in the run's folder
    key: str  # below the URL
    size: int
    checksum: str


class Inventory(BaseModel):
    """Everything that one state of a run is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    step: int
    generation: int
    files: list[Stored]
    checksum: str = ""  # of all that is above: an object that was cut off is no inventory

    def sealed(self) -> Inventory:
        return self.model_copy(update={"checksum": self._sum()})

    @property
    def whole(self) -> bool:
        return self.checksum == self._sum()

    def _sum(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.model_dump_json(exclude={"checksum"}).encode())


class State(NamedTuple):
    """What is to be sent: the manifest's own bytes, because the file may be replaced meanwhile."""

    run_id: str
    step: int
    generation: int
    checkpoints: list[str]  # folders, the one to resume from last
    manifest: bytes


class Mirror:
    """One run's second place.

    Example:
        >>> import tempfile
        >>> there, run, empty = (Path(tempfile.mkdtemp()) for _ in range(3))
        >>> _ = (run / "events.jsonl").write_text("{}")
        >>> Mirror(there.as_uri()).send(run, State("demo", 3, 1, [], b"{}"))
        >>> Mirror(there.as_uri()).fetch(empty).step, (empty / "events.jsonl").read_text()
        (3, '{}')
    """

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url, self._sleep = url, sleep
        try:
            self._files, self._root = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"run.mirror: {url}: {_one_line(error)}") from None
        self._has_folders = isinstance(self._files, fs.LocalFileSystem)
        self._known: Inventory | None = None  # the newest one

    def newest(self) -> Inventory | None:
        """What a resume would find here."""
        names = sorted((name for name in self._names() if name.startswith(f"{INVENTORY}-")), reverse=True)
        return next(filter(None, map(self._read_inventory, names)), None)

    @property
    def lost(self) -> bool:
        """Whether inventories are here and none is whole: what they named may be whole all the same."""
        return self.newest() is None and any(name.startswith(f"{INVENTORY}-") for name in self._names())

    def send(self, run_folder: Path, state: State) -> None:
        """Everything that changed since, then the inventory, then what nobody needs any longer is removed."""
        known = self._known or self.newest()
        if known is not None and known.run_id != state.run_id:
            raise StorageFailed(f"{self.url} holds the run {known.run_id}: give this one a run.mirror of its own")
        have = {stored.path: stored for stored in known.files} if known else {}
        name = f"{state.generation:06d}-{state.step:09d}-{time.time_ns():020d}"  # in order of what they name
        sent: dict[str, Stored | None] = {}
        # Again until nothing is new: rows may be joined into other files meanwhile.
        while new := [path for path in _files_of(run_folder, state) if path not in sent]:
            for path in new:
                sent[path] = self._send_file(run_folder, path, have.get(path), f"{VERSIONS}/{name}/{path}")
        if state.checkpoints and not _all_sent(run_folder, state.checkpoints[-1], sent):
            raise StorageFailed(f"{run_folder / state.checkpoints[-1]} went before it was sent to {self.url}")
        files = [self._send_bytes(f"{VERSIONS}/{name}/{MANIFEST}", MANIFEST, state.manifest), *filter(None, sent.values())]
        inventory = Inventory(run_id=state.run_id, step=state.step, generation=state.generation, files=files).sealed()
        self._send_bytes(f"{INVENTORY}-{name}.json", "", inventory.model_dump_json().encode())
        self._known = inventory
        self._remove_others(inventory, f"{INVENTORY}-{name}.json")

    def fetch(self, run_folder: Path) -> Inventory:
        """Brings the newest state into a folder, its manifest last; every file is checked."""
        inventory = self.newest()
        if inventory is None:
            raise StorageFailed(f"{self.url} holds no run")
        for stored in sorted(inventory.files, key=lambda stored: stored.path == MANIFEST):
            target = run_folder / _safe(stored.path)
            _refuse_outside(stored.key)
            if not _is(target, stored):
                self._tried(f"fetch {stored.path}", partial(self._fetch_one, stored, target))
        self._known = inventory
        return inventory

    def forget(self) -> None:
        """Removes the run that is here: inventories first, so that no reader finds half of it."""
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        infos = self._tried("list", lambda: self._files.get_file_info(selector))
        files = [info.path for info in infos if info.type == fs.FileType.File]
        for path in sorted(files, key=lambda path: not PurePosixPath(path).name.startswith(f"{INVENTORY}-")):
            self._tried("remove", partial(self._remove, path))
        self._known = None

    # Inside

    def _send_file(self, run_folder: Path, path: str, had: Stored | None, key: str) -> Stored | None:
        """One file as it is now; None where it went since it was listed."""
        source = run_folder / path
        try:
            size = source.stat().st_size
            if _lasts(path):
                if had is not None and had.size == size:
                    return had
                key = path if had is None else key
            checksum = self._tried(f"send {path}", lambda: self._send_stream(key, source, size))
        except (FileNotFoundError, _Gone):
            return None
        return Stored(path=path, key=key, size=size, checksum=checksum)

    def _send_stream(self, key: str, source: Path, size: int) -> str:
        """The first `size` bytes: what grows while it is read is cut there. Returns their checksum."""
        digest, left = xxhash.xxh3_128(), size
        try:
            file = source.open("rb")
        except FileNotFoundError as error:
            raise _Gone from error
        with file, self._writing(key) as stream:
            while left and (chunk := file.read(min(CHUNK, left))):
                digest.update(chunk)
                stream.write(chunk)
                left -= len(chunk)
        self._expect(key, size - left)
        return digest.hexdigest()

    def _send_bytes(self, key: str, path: str, content: bytes) -> Stored:
        def write() -> None:
            with self._writing(key) as stream:
                stream.write(content)
            self._expect(key, len(content))

        self._tried(f"send {path or key}", write)
        return Stored(path=path, key=key, size=len(content), checksum=xxhash.xxh3_128_hexdigest(content))

    def _writing(self, key: str) -> Any:
        if self._has_folders:  # elsewhere a folder is a part of a name
            self._files.create_dir(str(PurePosixPath(self._at(key)).parent), recursive=True)
        return self._files.open_output_stream(self._at(key))

    def _expect(self, key: str, size: int) -> None:
        """A stream that breaks may leave an object that was cut off under its name."""
        found = self._files.get_file_info(self._at(key))
        if found.size != size:
            raise OSError(f"{key} has {found.size} bytes of {size}")

    def _fetch_one(self, stored: Stored, target: Path) -> None:
        digest = xxhash.xxh3_128()
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".unfinished")
        with self._files.open_input_stream(self._at(stored.key)) as stream, unfinished.open("wb") as file:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != stored.checksum:
            raise OSError(f"{stored.key} is not what was sent as {stored.path}")
        os.replace(unfinished, target)
        sync(target.parent)

    def _read_inventory(self, name: str) -> Inventory | None:
        """None for one that was cut off; any other failure is one, for the state that it names may be the last."""

        def read() -> bytes:
            with self._files.open_input_stream(self._at(name)) as stream:
                return bytes(stream.read())

        try:
            inventory = Inventory.model_validate_json(self._tried(f"read {name}", read))
        except ValidationError:
            return None
        return inventory if inventory.whole else None

    def _remove_others(self, inventory: Inventory, name: str) -> None:
        """Older inventories, then objects that this one does not name. What cannot be removed costs room and nothing else."""
        needed = {stored.key for stored in inventory.files}
        for other in self._names():
            if other.startswith(f"{INVENTORY}-") and other != name:
                self._tried("remove", partial(self._remove, self._at(other)))
        used = {"/".join(key.split("/")[:2]) for key in needed}
        for folder in (VERSIONS, LASTING[0]):  # what was sent and came to no inventory, too
            for found in self._names(folder):
                if f"{folder}/{found}" not in used:
                    self._tried("remove", partial(self._files.delete_dir, self._at(f"{folder}/{found}")))
        for folder in (VERSIONS, *LASTING, ROWS):  # and what an earlier state left because it could not be removed then
            for path in self._files_below(folder):
                if path.removeprefix(f"{self._root}/") not in needed:
                    self._tried("remove", partial(self._remove, path))

    def _files_below(self, folder: str) -> list[str]:
        selector = fs.FileSelector(self._at(folder), allow_not_found=True, recursive=True)
        infos = self._tried("list", lambda: self._files.get_file_info(selector))
        return [info.path for info in infos if info.type == fs.FileType.File]

    def _names(self, folder: str = "") -> list[str]:
        """Of what lies directly below the URL, or below a folder of it."""
        selector = fs.FileSelector(self._at(folder) if folder else self._root, allow_not_found=True)
        return [info.base_name for info in self._tried("list", lambda: self._files.get_file_info(selector))]

    def _remove(self, path: str) -> None:
        if self._files.get_file_info(path).type == fs.FileType.File:
            self._files.delete_file(path)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _tried(self, what: str, action: Callable[[], T]) -> T:
        """Several times, with growing waits."""
        wait_s = FIRST_WAIT_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except (OSError, pa.ArrowException) as error:
                if attempt == ATTEMPTS:
                    raise StorageFailed(f"{self.url}: {what}: {_one_line(error)}, {attempt} times") from None
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise AssertionError("unreachable")


def _files_of(run_folder: Path, state: State) -> Iterator[str]:
    """Relative paths: what lasts first, so that what is counted last is the newest."""
    for folder in (*state.checkpoints, *LASTING[1:]):
        yield from _below(run_folder, folder)
    yield from _below(run_folder, ROWS)
    yield from (name for name in STATE if (run_folder / name).is_file())


def _below(run_folder: Path, folder: str) -> list[str]:
    paths = sorted(path for path in (run_folder / folder).rglob("*") if path.is_file() and ".unfinished" not in path.as_posix())
    return [path.relative_to(run_folder).as_posix() for path in paths]


def _all_sent(run_folder: Path, checkpoint: str, sent: dict[str, Stored | None]) -> bool:
    """Whether a checkpoint is whole in the second place: none of its files went before its turn came."""
    stored = {path for path, stored in sent.items() if stored and path.startswith(f"{checkpoint}/")}
    return bool(stored) and stored == set(_below(run_folder, checkpoint))


def _lasts(path: str) -> bool:
    first = path.partition("/")[0]
    return first in LASTING or (first == ROWS and path.endswith(LASTING_ROWS))


def _safe(path: str) -> Path:
    """A path of an inventory, which came from outside: only what this system itself sends, and never out of the folder."""
    parts = PurePosixPath(path).parts
    known = (*LASTING, ROWS, *STATE, MANIFEST)
    if not parts or parts[0] not in known or ".." in parts or "\\" in path or "\0" in path:
        raise StorageFailed(f"the inventory names {path!r}, which no run has: it is not of this system")
    return Path(*parts)


def _refuse_outside(key: str) -> None:
    """An object of the run lies below the URL."""
    parts = PurePosixPath(key).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in key:
        raise StorageFailed(f"the inventory names the object {key!r}, which lies elsewhere: it is not of this system")


def _is(target: Path, stored: Stored) -> bool:
    """Whether a file is here already, as after a fetch that was interrupted."""
    if not target.is_file() or target.stat().st_size != stored.size:
        return False
    digest = xxhash.xxh3_128()
    with target.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == stored.checksum


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
