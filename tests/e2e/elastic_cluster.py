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
from pathlib import Path

from tests.e2e.ray_head import end, free_ports, until_answering

NOTICE_S = 30  # the shortest that providers give
OBJECT_STORE = 100_000_000  # bytes, of each node; Ray's least is 78 MB


@contextmanager
def elastic_cluster(max_nodes: int, idle_s: float) -> Iterator[dict[str, str]]:
    """The environment of a program that joins: a head without anything to offer, and up to `max_nodes` of one GPU and one CPU."""
    folder = Path(tempfile.mkdtemp(prefix="medr3-"))  # short: Ray puts Unix sockets below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    (port,) = free_ports(1)
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
            until_answering(head, port, folder / "start.log")
            yield environment
        finally:
            end(head, folder)
            shutil.rmtree(folder, ignore_errors=True)
