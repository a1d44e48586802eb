"""A Ray cluster of several nodes on one machine, for faults that take a whole node. Ended by process ids.

The head holds driver, learner and retrieval; each node beside it offers one `spot`, which an engine takes
(`rollout.engine.resources={spot: 1}`). What is lost is replaced, as a provider would.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from medr3.chaos.processes import Process, below
from security.local_ray import LOOPBACK

UP_S = 180.0  # 5 s on idle cores; minutes on a machine that is shared
STORE_BYTES = 100_000_000  # of each node; Ray's least is 78 MB
SPOT = "spot"
HEAD_CPUS, NODE_CPUS = 8, 2  # slots, not cores: what they hold mostly waits


@dataclass
class Cluster:
    """`environment` is that of a program which joins it."""

    folder: Path
    environment: dict[str, str]
    port: int
    head: subprocess.Popen[bytes]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def start(cls, nodes: int) -> Cluster:
        """A head with a token of its own on loopback, and so many nodes."""
        folder = Path(tempfile.mkdtemp(prefix="medr3-"))  # short: Ray puts Unix sockets below it
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        port, board, client = free_ports(3)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "180", "RAY_agent_register_timeout_ms": "120000",
            "RAY_worker_niceness": "0", "RAY_ADDRESS": f"127.0.0.1:{port}",
        }  # fmt: skip
        joining = environment | LOOPBACK  # or Ray takes the loopback for another address, on which nothing listens
        head = _ray_start(
            ["ray"], folder, joining, "--head", f"--port={port}", f"--num-cpus={HEAD_CPUS}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={board}", f"--ray-client-server-port={client}", f"--temp-dir={folder}",
        )  # fmt: skip
        cluster = cls(folder, joining, port, head)
        try:
            until_answering(head, board, folder / "start.log")
            for _ in range(nodes):
                cluster.add_node()
                cluster.until_joined()  # two that start at once may take the same names in their common folder
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def roots(self) -> list[int]:
        return [process.pid for process in (self.head, *self.nodes)]

    def everything(self) -> list[Process]:
        """What is below its nodes, and may outlive a run; whether actors of the run are among it, Ray says."""
        return below(self.roots())

    def add_node(self) -> None:
        """Ray looks for it by itself; whoever waits for its resources gets them when it is there."""
        own = {name: value for name, value in self.environment.items() if name not in LOOPBACK}  # with it Ray allows one node
        self.nodes.append(
            _ray_start(
                [sys.executable, "-m", "medr3.chaos.loopback_node"],
                self.folder,
                own,
                f"--address=127.0.0.1:{self.port}",
                f"--num-cpus={NODE_CPUS}",
                f"--resources={json.dumps({SPOT: 1})}",
            )
        )

    def until_joined(self) -> None:
        """Until Ray knows every node; one that ended instead is told with its last words."""
        deadline = time.monotonic() + UP_S
        while len(json.loads(self._medr3("drain", "--json"))) <= len(self.nodes):
            if any(node.poll() is not None for node in self.nodes) or time.monotonic() > deadline:
                said = (self.folder / "start.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise RuntimeError(f"a node does not join the cluster: {said[-1] if said else 'it said nothing'}")
            time.sleep(0.5)

    def lose_node(self, pick: float) -> str:
        """All processes of one node die at once; another node comes."""
        node = self.nodes.pop(int(pick * len(self.nodes)))
        killed = _kill_all(node)
        self.add_node()
        return f"node of process {node.pid}, {killed} processes"

    def give_notice(self, pick: float, seconds: float) -> str:
        """A node is drained as a provider's notice has it done, and dies at the deadline; another node comes at once."""
        number = int(pick * len(self.nodes))
        known = json.loads(self._medr3("drain", "--json"))
        going = sorted(node["node"] for node in known if not node["head"])[number]
        self.add_node()
        drained = time.monotonic()
        self._medr3("drain", going, "--deadline", f"{seconds:g}")
        time.sleep(max(0.0, seconds - (time.monotonic() - drained)))
        for node in [node for node in self.nodes if _is_node(node, going)]:
            self.nodes.remove(node)
            _kill_all(node)
        return f"node {going[:8]}, {seconds:g} s before its end"

    def stop(self) -> None:
        for process in (*self.nodes, self.head):
            _kill_all(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _medr3(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "medr3.cli", *words],
            env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=UP_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"medr3 {' '.join(words)}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has at this moment."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _ray_start(ray: list[str], folder: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    agent, agent_grpc, metrics = free_ports(3)
    common = [
        "--block", "--node-ip-address=127.0.0.1", f"--object-store-memory={STORE_BYTES}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with (folder / "start.log").open("ab") as log:
        return subprocess.Popen(
            [*ray, "start", *words, *common], env={**inherited, **own}, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def until_answering(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until a head that was just started answers at its dashboard's port; `log` is shown where it does not."""
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    said = log.read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"a Ray cluster did not come up within {UP_S:g} s: {said[-500:]}")


def _kill_all(root: subprocess.Popen[bytes]) -> int:
    """The processes below first noted, then ended: the death of one makes others nobody's children."""
    found: list[Process] = below([root.pid])
    for process in found:
        if process.lives:
            os.kill(process.pid, signal.SIGKILL)
    root.wait()
    return len(found)


def _is_node(process: subprocess.Popen[bytes], node_id: str) -> bool:
    return any(f"--node-id={node_id}" in each.command or node_id in each.command for each in below([process.pid]))
