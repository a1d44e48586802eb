"""The files of Ray's cluster launcher: taken by Ray's own check, without secrets, and in agreement with what the code asks for."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from medr3.config import load
from medr3.ops.demand import Shape, demands, unplaceable

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "deploy/cluster.gcp.yaml")
GROUPS = {"learner", "rollout", "retrieval"}
# What the machines of the file have beside the resources that it names; `ray up` asks the provider for it.
MACHINES = {
    "p4de.24xlarge": {"CPU": 96, "GPU": 8}, "g6e.2xlarge": {"CPU": 8, "GPU": 1}, "r7i.4xlarge": {"CPU": 16},
    "a2-ultragpu-8g": {"CPU": 96, "GPU": 8}, "a2-highgpu-1g": {"CPU": 12, "GPU": 1}, "n2-highmem-16": {"CPU": 16},
}  # fmt: skip


@pytest.fixture(scope="module", params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / request.param).read_text(encoding="utf-8"))
    return found


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def test_ray_takes_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config({**cluster, "max_worker": 1}))


def test_the_head_runs_no_work_and_only_engines_can_be_taken_back(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    spot = {name for name, kind in types.items() if re.search("'spot'|'preemptible': True", str(kind["node_config"]))}
    assert spot == {"rollout"}
    assert set(workers(cluster)) == GROUPS
    for name, kind in workers(cluster).items():
        assert kind["resources"] == {name: 1}
        assert kind["min_workers"] <= kind["max_workers"] and kind["idle_timeout_s"] > 0
    assert types["learner"]["priority"] > types["rollout"]["priority"]
    assert sum(kind["max_workers"] for kind in workers(cluster).values()) <= cluster["max_workers"]


@pytest.mark.parametrize("recipe", ["qwen2.5-7b", "qwen2.5-14b", "med_r3", "r3_rag"])
def test_every_recipe_finds_room_on_the_groups_that_it_asks_for(cluster: dict[str, Any], recipe: str) -> None:
    config = load(ROOT / f"configs/recipes/{recipe}.yaml", ["run.placement=groups"])
    shapes = [
        Shape(name, {**kind["resources"], **MACHINES[machine(kind)]}, kind["max_workers"])
        for name, kind in workers(cluster).items()
    ]
    assert all(set(demand.bundle) & GROUPS for demand in demands(config)), "every kind of process names its group"
    assert unplaceable(demands(config), shapes) == []
    missing = [shape for shape in shapes if shape.name != "rollout"]
    assert unplaceable(demands(config), missing)[0].startswith("engines: ")


def machine(kind: dict[str, Any]) -> str:
    node = kind["node_config"]
    return str(node.get("InstanceType") or node["machineType"])


@pytest.mark.parametrize("path", [*FILES, "deploy/kuberay/base.yaml", "deploy/kuberay/raycluster.yaml", "deploy/Containerfile"])
def test_no_secret_stands_in_it(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not re.search(r"(?i)(api_?key|password|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9/+_-]{16,}", text)
    assert not re.search(r"\b(AKIA|hf_|sk-|ghp_)[A-Za-z0-9]{10,}", text)


def test_what_it_sends_and_starts_exists(cluster: dict[str, Any]) -> None:
    commands = str(cluster)
    assert "RAY_AUTH_MODE=token" in commands and "RAY_gcs_storage=rocksdb" in commands
    named = set(re.findall(r"~/medr3/([\w./-]+\.sh)", commands))
    assert named == {"deploy/spot-notice.sh"}
    assert all((ROOT / name).exists() for name in named)


class Metadata(BaseHTTPRequestHandler):
    """What a provider answers to a machine about itself; the notice comes with the third question for it."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer("a-session")

    def do_GET(self) -> None:
        known = {
            "/latest/meta-data/instance-life-cycle": "spot", "/latest/meta-data/local-ipv4": "10.0.0.7",
            "/computeMetadata/v1/instance/scheduling/preemptible": "TRUE",
            "/computeMetadata/v1/instance/network-interfaces/0/ip": "10.0.0.7",
        }  # fmt: skip
        notice = {
            "/latest/meta-data/spot/instance-action": (None, "{}"),
            "/computeMetadata/v1/instance/preempted": ("FALSE", "TRUE"),
        }
        if self.path in notice:
            Metadata.asked += 1
            self._answer(notice[self.path][Metadata.asked > 2])
        else:
            self._answer(known.get(self.path))

    def _answer(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked = 0
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("provider", "left"), [("aws", "110"), ("gcp", "25")])
def test_a_spot_notice_drains_the_machine(metadata: str, tmp_path: Path, provider: str, left: str) -> None:
    command = tmp_path / "medr3"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "METADATA": metadata, "EVERY_S": "0.05"}
    heard = subprocess.run(
        ["bash", str(ROOT / "deploy/spot-notice.sh"), provider],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert heard.stdout == f"drain 10.0.0.7 --deadline {left} --wait\n"
    assert Metadata.asked == 3


def test_where_nothing_is_taken_back_the_watch_ends(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "METADATA": "http://127.0.0.1:9"}
    done = subprocess.run(
        ["bash", str(ROOT / "deploy/spot-notice.sh"), "aws"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
