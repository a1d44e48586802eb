"""Where faults happen: one run's driver, its Ray, its folder, and the processes below them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medr3.chaos.cluster import Cluster
from medr3.chaos.processes import Process, Watcher
from trajectories.audit import EVENTS_FILE
from trajectories.events import Event, read_events

INSIDE_S = 180.0  # joining a Ray takes 3 s on idle cores, and what follows seconds; a busy machine takes many times that


@dataclass(frozen=True)
class Copy:
    """How a process was started, read before it dies."""

    command: list[str]
    environment: dict[str, str]
    folder: str


@dataclass
class Scene:
    """A run's driver, started as often as its faults demand, always by the same command."""

    command: list[str]
    run_folder: Path
    log: Path
    environment: dict[str, str]
    cluster: Cluster | None = None
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    beside: list[subprocess.Popen[bytes]] = field(default_factory=list)  # control services that were started again
    watcher: Watcher = field(init=False)
    struck_at: float = 0.0  # Unix seconds of the last fault: only what follows it has been survived

    def __post_init__(self) -> None:
        self.watcher = Watcher(self.roots)

    def roots(self) -> list[int]:
        """The ids below which all processes of the run are."""
        own = [each.pid for each in (self.process, *self.beside) if each is not None]
        return [*own, *(self.cluster.roots() if self.cluster else [])]

    def strike(self, target: Process, with_signal: signal.Signals) -> None:
        os.kill(target.pid, with_signal)
        self.struck_at = time.time()

    def start(self) -> None:
        """The driver, in a process group of its own, its words in the log."""
        self.starts += 1
        own = {
            name: value.replace("{start}", str(self.starts)).replace("{folder}", str(self.run_folder))
            for name, value in self.environment.items()
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ended(self) -> int | None:
        """The code with which the driver ended; None while it lives."""
        return self.process.poll() if self.process is not None else None

    def processes(self) -> list[Process]:
        return self.watcher.look()

    def events(self) -> list[Event]:
        path = self.run_folder / EVENTS_FILE
        return read_events(path).events if path.exists() else []

    def manifest(self) -> dict[str, Any]:
        path = self.run_folder / "manifest.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Whatever still runs of what was started here; the run's own processes end with its driver."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.end_beside()

    def end_beside(self) -> None:
        """Control services that were started again: with the driver ended, they have no run any more."""
        for each in self.beside:
            each.kill()
            each.wait()
        self.beside.clear()

    def copy_of(self, process: Process) -> Copy:
        folder = Path(f"/proc/{process.pid}")
        variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        return Copy(
            [word.decode() for word in (folder / "cmdline").read_bytes().split(b"\0") if word],
            dict(variable.split("=", 1) for variable in variables if "=" in variable),
            str((folder / "cwd").readlink()),
        )

    def start_beside(self, copy: Copy) -> int:
        """Starts a process anew as it was; returns its id."""
        started = subprocess.Popen(
            copy.command, env=copy.environment, cwd=copy.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.beside.append(started)
        return started.pid

    def inside(self, what: str, *arguments: str) -> str:
        """Does something from within the run's Ray, in a process of its own that joins it and leaves it again."""
        command = [sys.executable, "-m", "medr3.chaos.inside", what, str(self.run_folder), *arguments]
        joining = {**(self.cluster.environment if self.cluster else {}), "RAY_ADDRESS": self.ray_address()}
        environment = {**os.environ, "RAY_AUTH_MODE": "token", **joining}  # which a Ray asks for; whoever joins has to be told
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSIDE_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{what} from within the run's Ray: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return done.stdout.strip()

    def ray_address(self) -> str:
        """Of the control service that the run's node manager was given."""
        for process in self.processes():
            if process.role == "raylet" and "--gcs-address=" in process.command:
                return process.command.partition("--gcs-address=")[2].split()[0]
        raise RuntimeError("the run has no Ray at this moment")
