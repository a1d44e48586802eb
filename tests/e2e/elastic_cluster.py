"""A Ray cluster of its own whose real autoscaler starts and ends nodes, as processes of this machine; ended by process id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_TIMEOUT_S = 180  # 5 s on idle cores; minutes where other tests have them
NOTICE_S = 30  # the shortest that providers give
OBJECT_STORE = 100_000_000  # bytes, of each node; Ray's least is 78 MB


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def elastic_cluster(max_nodes: int, idle_s: float) -> Iterator[dict[str, str]]:
    """The environment of a program that joins: a head without anything to offer, and up to `max_nodes` of one GPU and one CPU."""
    folder = Path(tempfile.mkdtemp(prefix="medr3-"))  # short: Ray puts Unix sockets below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port = free_port()
    engine_node = {"CPU": 1, "GPU": 1, "object_store_memory": OBJECT_STORE}
    config = {
        "cluster_name": "elastic", "max_workers": max_nodes, "upscaling_speed": max_nodes, "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "launch_multiple": True,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "engine": {"resources": engine_node, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
        },
        "head_node_type": "ray.head.default",
        # Of no use where nothing is installed anywhere, but the autoscaler ends without them.
        "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    (folder / "autoscaling.yaml").write_text(json.dumps(config))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120",
        "RAY_worker_niceness": "0", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_ADDRESS": f"127.0.0.1:{port}",
    }  # fmt: skip
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(
            [
                "ray", "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0", f"--port={port}",
                "--include-dashboard=false", f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE}",
                f"--autoscaling-config={folder / 'autoscaling.yaml'}",
            ],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _until_answering(head, port, folder / "start.log")
            yield environment
        finally:
            _end(head, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _until_answering(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"ray start did not come up:\n{log.read_text()}")


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
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
