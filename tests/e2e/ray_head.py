"""A Ray head as a process of a test's own: free ports, waiting until it answers, and its end by process ids."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import psutil

START_TIMEOUT_S = 180  # 5 s on idle cores; minutes where other tests have them


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def until_answering(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"ray start did not come up:\n{log.read_text()}")


def end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """The head first; then, by their ids, those of this cluster's processes that outlive it: its nodes' are nobody's children."""
    head.terminate()
    try:
        head.wait(timeout=20)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    _, alive = psutil.wait_procs(_processes_of(folder), timeout=5)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Ray names its session folder in the command line of everything that it starts; workers inherit the token's path."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) or process.environ().get("RAY_AUTH_TOKEN_PATH", "").startswith(
                str(folder)
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
