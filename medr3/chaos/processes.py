"""The processes of a run as the operating system has them: who belongs to it, what each one is, and what it holds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# What a process is, by what its command line begins with or holds. Ray and vLLM name their processes so.
ROLES = {
    "medr3.cli": "driver", "VLLM::EngineCore": "engine process", "ray::RolloutActor": "rollout actor",
    "ray::RayTrainWorker": "learner worker", "ray::TrainController": "train controller", "ray::Mailbox": "exchange",
    "ray::Exchange": "exchange", "ray::ServeReplica": "replica", "ray::ServeController": "serve controller",
    "gcs_server": "gcs", "raylet/raylet": "raylet",
}  # fmt: skip
OTHER = "other"
SHARED_MEMORY = Path("/dev/shm")
LOOK_EVERY_S = 2.0  # a process that lives shorter can hold nothing that matters for long
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def role_of(command: str) -> str:
    """What a command line says that its process is.

    Example:
        >>> role_of("ray::ServeReplica:medr3-demo-retrieval:Replica"), role_of("python -m medr3.cli train x.yaml"), role_of("sh")
        ('replica', 'driver', 'other')
    """
    return next((role for sign, role in ROLES.items() if sign in command), OTHER)


@dataclass(frozen=True)
class Process:
    """One process; its start tells it from a later one with the same id."""

    pid: int
    started: int
    command: str

    @property
    def role(self) -> str:
        return role_of(self.command)

    @property
    def lives(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found.started == self.started and found.state != "Z"


def below(roots: Iterable[int]) -> list[Process]:
    """The processes with these ids and all below them, without those that have ended."""
    children: dict[int, list[int]] = {}
    stats: dict[int, _Stat] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (found := _stat(int(folder.name))) is not None:
            stats[int(folder.name)] = found
            children.setdefault(found.parent, []).append(int(folder.name))
    waiting, seen = list(roots), set()
    while waiting:
        pid = waiting.pop()
        if pid in stats and pid not in seen:
            seen.add(pid)
            waiting += children.get(pid, [])
    return [Process(pid, stats[pid].started, command_line(pid)) for pid in sorted(seen) if stats[pid].state != "Z"]


def surviving(processes: Iterable[Process], patience_s: float) -> list[Process]:
    """Which of them still live after so long. One that changed its command line, as Ray's do, counts once."""
    deadline = time.monotonic() + patience_s
    known = {(process.pid, process.started): process for process in processes}.values()
    while (living := [process for process in known if process.lives]) and time.monotonic() < deadline:
        time.sleep(0.5)
    return living


def command_line(pid: int) -> str:
    """Words with spaces between them; empty where the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def shared_memory_of(pid: int) -> set[int]:
    """Inodes of the files in /dev/shm that a process maps. Not their names: a semaphore is mapped under one and kept under another."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in lines if f"{SHARED_MEMORY}/" in line}


@dataclass(frozen=True)
class Sample:
    """What one process held at one moment."""

    at: float  # Unix seconds
    pid: int
    role: str
    own_mib: float  # memory of its own
    shared_mib: float  # of it in shared memory
    descriptors: int


def sample(process: Process) -> Sample | None:
    """None where it ended meanwhile."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{process.pid}/statm").read_text().split()
        descriptors = sum(1 for _ in os.scandir(f"/proc/{process.pid}/fd"))
    except (OSError, ValueError):
        return None
    own = (int(resident) - int(shared)) * _PAGE_MIB
    return Sample(time.time(), process.pid, process.role, own, int(shared) * _PAGE_MIB, descriptors)


@dataclass
class Watcher:
    """Looks at a run's processes every few seconds, from a thread: afterwards nobody could say whose they were.

    Example:
        with Watcher(lambda: [driver.pid]) as watcher: ...
        watcher.left_behind(patience_s=60)
    """

    roots: Callable[[], Iterable[int]]
    seen: set[Process] = field(default_factory=set)
    mapped: set[int] = field(default_factory=set)  # inodes in /dev/shm
    samples: list[Sample] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watcher:
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> list[Process]:
        """Once, now; returns what is there."""
        found = below(self.roots())
        for process in found:
            if process.pid != os.getpid():
                self.seen.add(process)
                self.mapped |= shared_memory_of(process.pid)
                if (held := sample(process)) is not None:
                    self.samples.append(held)
        return found

    def left_behind(self, patience_s: float, apart_from: Collection[int] = ()) -> list[Process]:
        """Processes of the run that still live after so long, without those that were there before it."""
        return surviving((process for process in self.seen if process.pid not in apart_from), patience_s)

    def shared_left(self) -> list[Path]:
        """Shared memory that the run mapped and that still has a name, with no process that maps it."""
        kept = {Path(entry.path): entry.inode() for entry in os.scandir(SHARED_MEMORY)}
        held = set().union(*(shared_memory_of(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")))
        return sorted(path for path, inode in kept.items() if inode in self.mapped - held)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self.look()


@dataclass(frozen=True)
class _Stat:
    parent: int
    state: str
    started: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(int(fields[1]), fields[0], int(fields[19]))
