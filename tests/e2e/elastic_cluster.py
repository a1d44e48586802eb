"""A Ray cluster of its own whose real autoscaler starts and ends nodes, as processes of this machine; ended by process id."""

from __future__ import annotations

import json
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
from typing import Any

from tests.e2e.ray_head import end, free_ports, until_answering

ROOT = Path(__file__).parents[2]
NOTICE_S = 30  # the shortest that providers give
OBJECT_STORE = 100_000_000  # bytes, of each node; Ray's least is 78 MB


@dataclass(frozen=True)
class Cluster:
    """`environment` is that of a program which joins it; `address` is its dashboard's, empty where it has none."""

    folder: Path
    address: str
    environment: dict[str, str]


@contextmanager
def elastic_cluster(max_nodes: int, idle_s: float) -> Iterator[dict[str, str]]:
    """The environment of a program that joins: a head without anything to offer, and up to `max_nodes` of one GPU and one CPU."""
    types = {"engine": {"resources": {"CPU": 1, "GPU": 1}, "max_workers": max_nodes}}
    with ray_cluster(types, idle_s, dashboard=False) as cluster:
        yield cluster.environment


@contextmanager
def ray_cluster(types: dict[str, dict[str, Any]], idle_s: float, *, dashboard: bool) -> Iterator[Cluster]:
    """Its head offers nothing; the autoscaler adds nodes of these types. The token is asked for everywhere."""
    folder = Path(tempfile.mkdtemp(prefix="medr3-"))  # short: Ray puts Unix sockets below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, board, client, agent, agent_grpc, metrics = free_ports(6)
    (folder / "autoscaling.yaml").write_text(json.dumps(_autoscaling(types, idle_s, gcs)))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "RAY_worker_niceness": "0", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_ADDRESS": f"127.0.0.1:{gcs}",
    }  # fmt: skip
    shown = [
        "--dashboard-host=127.0.0.1", f"--dashboard-port={board}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
    ] if dashboard else ["--include-dashboard=false"]  # fmt: skip
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(
            [
                "ray", "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", *shown, f"--temp-dir={folder}",
                f"--object-store-memory={OBJECT_STORE}", f"--autoscaling-config={folder / 'autoscaling.yaml'}",
            ],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            until_answering(head, board if dashboard else gcs, folder / "start.log")
            yield Cluster(folder, f"http://127.0.0.1:{board}" if dashboard else "", environment)
        finally:
            end(head, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _autoscaling(types: dict[str, dict[str, Any]], idle_s: float, port: int) -> dict[str, Any]:
    most = sum(kind["max_workers"] for kind in types.values())
    workers = {
        name: {
            "resources": {**kind["resources"], "object_store_memory": OBJECT_STORE}, "node_config": {}, "min_workers": 0,
            "max_workers": kind["max_workers"],
        }
        for name, kind in types.items()
    }  # fmt: skip
    return {
        "cluster_name": "elastic", "max_workers": most, "upscaling_speed": most, "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external", "module": "tests.e2e.fake_nodes.OwnFolders", "gcs_address": f"127.0.0.1:{port}", "launch_multiple": True,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **workers,
        },
        "head_node_type": "ray.head.default",
        # Of no use where nothing is installed anywhere, but the autoscaler ends without them.
        "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
