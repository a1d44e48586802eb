"""A Ray head as a process of a test's own: free ports, waiting until it answers, and its end by process ids."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from medr3.chaos.cluster import free_ports, until_answering
from security.local_ray import LOOPBACK


@dataclass(frozen=True)
class Head:
    """One node that is a cluster. `environment` is that of a program which joins it by RAY_ADDRESS, with its token."""

    folder: Path
    dashboard: str
    environment: dict[str, str]


@contextmanager
def one_node(cpus: int, **variables: str) -> Iterator[Head]:
    """A head that works as well, with a dashboard and a token; `variables` are Ray's own, for the head and for who joins."""
    folder = Path(tempfile.mkdtemp(prefix="medr3-"))  # short: Ray puts Unix sockets below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120",
        "RAY_worker_niceness": "0", **variables,
    }  # fmt: skip
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(
            [
                "ray", "start", "--head", "--block", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
                f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
                f"--metrics-export-port={metrics}", f"--temp-dir={folder}", "--object-store-memory=200000000",
            ],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            until_answering(head, dashboard, folder / "start.log")
            # The second: Ray takes the loopback for the machine's own address otherwise, on which this head does not listen.
            joining = {"RAY_ADDRESS": f"127.0.0.1:{gcs}", **LOOPBACK}
            yield Head(folder, f"http://127.0.0.1:{dashboard}", environment | joining)
        finally:
            end(head, folder)
            shutil.rmtree(folder, ignore_errors=True)


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
