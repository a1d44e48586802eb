"""What a machine must have before a run starts: found out in a moment, not after minutes of starting engines."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medr3.ops.check import Check, require

GIB = 1024**3
PYTHON = (3, 11)  # the lowest that pyproject.toml allows; 3.14 has no wheels of the accelerator stack
# The demo's eight Python processes start at 0.3 GiB (torch, Ray) to 0.65 GiB (vLLM) each; the rest is Ray's own and caches.
DEMO_MEMORY = 4 * GIB
# Ray's object store (a quarter GiB holds many steps of groups) and the weights' files; below it Ray moves to disk.
DEMO_SHARED_MEMORY = GIB // 2
DEMO_DISK = 2 * GIB  # trajectories, three checkpoints and logs
RAY_DISK_LIMIT = 0.95  # Ray's local_fs_capacity_threshold: above it every new object fails


@dataclass(frozen=True, slots=True)
class Needs:
    """How much a run needs, in bytes; the defaults are the demo's."""

    memory: int = DEMO_MEMORY
    shared_memory: int = DEMO_SHARED_MEMORY
    disk: int = DEMO_DISK


def preflight(run_folder: Path, *, http_port: int = 0, needs: Needs = Needs()) -> list[Check]:
    """All checks; raises one UserError that names every failure with its mend, a line each."""
    checks = [
        check_python(), check_memory(needs.memory), check_shared_memory(needs.shared_memory), check_run_folder(run_folder),
        check_disk(run_folder, needs.disk),
    ]  # fmt: skip
    if http_port:
        checks.append(check_port(http_port))
    require(checks)
    return checks


def check_python() -> Check:
    found = sys.version_info[:2]
    ok = PYTHON <= found < (3, 14)
    return Check("Python", ok, f"{found[0]}.{found[1]}", "use 3.11, 3.12 or 3.13, for example make venv PYTHON=python3.12")


def available_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be had: the machine's, or the container's where its limit is lower."""
    fields = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    limit = cgroup / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return machine
    used = int((cgroup / "memory.current").read_text())
    statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    reclaimable = int(statistics.get("inactive_file", 0))  # page cache counts as used but is given back at once
    return min(machine, int(limit.read_text()) - used + reclaimable)


def check_memory(needed: int) -> Check:
    if not sys.platform.startswith("linux"):
        return Check("memory", False, f"{sys.platform} is not Linux", "run it on Linux, in a container or a virtual machine")
    found = available_memory()
    mend = f"{_gib(needed)} are needed: end other programs or take a larger machine"
    return Check("memory", found >= needed, f"{_gib(found)} free", mend)


def check_shared_memory(needed: int, folder: Path = Path("/dev/shm")) -> Check:
    if not folder.is_dir():
        return Check("shared memory", False, f"{folder} does not exist", "mount a tmpfs there")
    found = shutil.disk_usage(folder).free
    mend = f"{_gib(needed)} are needed: in a container start it with --shm-size=2g, else remove old files there"
    return Check("shared memory", found >= needed, f"{_gib(found)} free in {folder}", mend)


def check_run_folder(run_folder: Path) -> Check:
    """Writes and removes a file: permissions alone do not tell of a read-only or a full file system."""
    mend = "set run.folder to a folder that you may write to"
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=run_folder) as file:
            file.write(b"medr3")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Check("run folder", False, f"{run_folder}: {error.strerror}", mend)
    return Check("run folder", True, str(run_folder), mend)


def check_disk(run_folder: Path, needed: int) -> Check:
    existing = next(folder for folder in (run_folder.absolute(), *run_folder.absolute().parents) if folder.exists())
    usage = shutil.disk_usage(existing)
    full = 1 - usage.free / usage.total if usage.total else 1.0  # a pseudo file system holds nothing
    ok = usage.free >= needed and full < RAY_DISK_LIMIT
    found = f"{_gib(usage.free)} free, {full:.0%} full"
    return Check(
        "disk", ok, found, f"{_gib(needed)} free and less than {RAY_DISK_LIMIT:.0%} full are needed: make room in {existing}"
    )


def check_port(port: int, host: str = "127.0.0.1") -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(
                "port", False, f"{host}:{port}: {error.strerror}", "set retrieval.http_port to a free port, or to 0 for none"
            )
    return Check("port", True, f"{host}:{port} is free", "")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
