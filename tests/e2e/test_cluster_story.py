"""What ops teams do at night, on a real cluster of its own: head, autoscaler and fake GPU nodes as processes, token on.

Every command is the real one, from outside, with nothing but the dashboard's address and the token. With MEDR3_TRANSCRIPTS=1 the
story writes what it typed and read to docs/transcripts/cluster.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from tasks.config import ColdStartConfig
from tasks.questions import Document
from tests.e2e.elastic_cluster import Cluster, ray_cluster
from tests.e2e.ray_head import free_ports
from trajectories.audit import audit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
TRANSCRIPT = ROOT / "docs" / "transcripts" / "cluster.md"
TYPES = {
    "learner": {"resources": {"CPU": 2, "learner": 1}, "max_workers": 1},
    "rollout": {"resources": {"CPU": 1, "GPU": 1, "rollout": 1}, "max_workers": 3},
    "retrieval": {"resources": {"CPU": 2, "retrieval": 1}, "max_workers": 1},
}
IDLE_S = 3600  # nodes go because they are drained, not because nothing is on them for a moment
START_S, ENGINE_S, STEP_S = 420, 300, 120  # on two cores that other tests use as well
# The model is not trained and the phases do not end: the story is about what runs, not about what it learns.
SETTINGS = (
    "run.name=night", "run.placement=groups", "run.checkpoint_every=50", "run.stall_timeout_s=240", "world.training_worlds=2",
    "rollout.group_size=4", "rollout.groups_per_step=8", "rollout.group_timeout_s=60",
    "rollout.engine={device: cpu, gpus: 1, cpu_threads: 1, kv_cache_mib: 64, max_model_len: 512}",
    "evaluation.probe_questions=10", "evaluation.test_questions=10", "curriculum.collapse.enabled=false",
    *(
        f"curriculum.phases.{phase}.{setting}"
        for phase in range(3)
        for setting in ("min_steps=5000", "max_steps=5000", "plateau.probe_every=5000")
    ),
)  # fmt: skip


@dataclass
class Outside:
    """Somebody at a machine that is not part of the cluster."""

    cluster: Cluster
    typed: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        inside = ("RAY_ADDRESS", "RAY_FAKE_CLUSTER", "AUTOSCALER_UPDATE_INTERVAL_S")
        return {name: value for name, value in self.cluster.environment.items() if name not in inside}

    def command(self, *arguments: str, address: str = "") -> list[str]:
        return [sys.executable, "-m", "medr3.cli", *arguments, "--address", address or self.cluster.address]

    def medr3(self, *arguments: str, address: str = "", **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, address=address), capture_output=True, text=True, env={**self.environment, **changed}, cwd=ROOT,
            timeout=300, check=False,
        )  # fmt: skip

    def told(self, *arguments: str) -> str:
        """A command that must work, written down with its answer."""
        done = self.medr3(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{done.stdout}"
        assert not done.stderr, done.stderr
        self.typed.append(f"$ medr3 {' '.join(arguments)} --address {self.cluster.address}\n{done.stdout.strip()}")
        return done.stdout

    def refused(self, *arguments: str, address: str = "", **changed: str) -> str:
        """A command that must end with one clear line."""
        done = self.medr3(*arguments, address=address, **changed)
        assert done.returncode == 2, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("medr3: "), done.stderr
        return lines[0]

    def status(self) -> dict[str, Any]:
        done = self.medr3("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def until(self, reached: Callable[[dict[str, Any]], bool], seconds: float, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not reached(found := self.status()):
            assert found["job_status"] in ("PENDING", "RUNNING"), f"{what}: {found}\n{self.medr3('logs').stdout[-3000:]}"
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s: {found}\n{self.medr3('logs').stdout[-3000:]}"
            time.sleep(1)
        return found


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    with ray_cluster(TYPES, IDLE_S, dashboard=True) as cluster:
        yield Outside(cluster)


def healthy(found: dict[str, Any]) -> list[str]:
    return [engine for engine, state in found.get("engines", {}).items() if state == "healthy"]


def test_retrieval_alone_is_deployed_as_kubernetes_does_it(outside: Outside, tmp_path: Path) -> None:
    """The Serve part of deploy/kuberay/rayservice.yaml, through the call that KubeRay makes; only its sizes are made small."""
    index, token = tmp_path / "index", tmp_path / "token"
    documents = [Document(id=f"d{i}", text=f"finding {i} of ward {i % 7}", collection="ward") for i in range(50)]
    HybridIndex.build(documents, index, RetrievalConfig(dimensions=64))
    token.write_text("a-token-of-retrieval-alone")
    (port,) = free_ports(1)
    manifest = yaml.safe_load((ROOT / "deploy/kuberay/rayservice.yaml").read_text(encoding="utf-8"))
    served = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    served |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    (application,) = served["applications"]
    application["args"] |= {"index": str(index), "http_token_file": str(token), "dimensions": 64}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 1, "resources": {"retrieval": 0.001}}
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = 1
    deploying = f"{outside.cluster.address}/api/serve/applications/"
    known = {"Authorization": f"Bearer {Path(outside.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    with httpx.Client(headers=known, timeout=120) as dashboard:
        taken = dashboard.put(deploying, json=served)
        assert taken.status_code == 200, taken.text
        deadline = time.monotonic() + START_S
        while (found := dashboard.get(deploying).json()["applications"]["retrieval"])["status"] != "RUNNING":
            assert time.monotonic() < deadline and found["status"] != "DEPLOY_FAILED", found
            time.sleep(1)
        asked = {"query": "finding 7 of ward 0", "k": 1, "collection": "ward"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as stranger:
            assert stranger.post("/search", json=asked).status_code == 401
            answer = stranger.post("/search", json=asked, headers={"Authorization": f"Bearer {token.read_text()}"})
        assert answer.status_code == 200 and answer.json()["hits"][0]["id"] == "d7", answer.text
        dashboard.delete(deploying)


@pytest.mark.long  # eight minutes on two cores, most of them the starts of processes
def test_a_night_with_one_run(outside: Outside, tmp_path: Path) -> None:
    from tasks.tiny_model import make_model, save

    folder, model = tmp_path / "night", tmp_path / "model"
    save(make_model(ColdStartConfig(), 0), model)
    training = ("submit", "configs/demo.yaml", f"run.folder={folder}", f"model.path={model}", *SETTINGS)
    checked = outside.told("doctor", "configs/demo.yaml", f"run.folder={folder}", "run.placement=groups")
    assert "FAIL" not in checked

    assert "no training was ever submitted" in outside.refused("status")

    sent = outside.told(*training)
    assert f"begins in {folder}" in sent
    outside.until(lambda found: found.get("step", 0) >= 2, START_S, "the first steps")
    shown = outside.told("status")
    assert "job_status: RUNNING" in shown and "pool: 1 healthy, of 1 wanted" in shown and "time left: " in shown
    assert f"{folder}: job " in outside.refused(*training), "a second run in the same folder"
    assert "step " in outside.told("logs")
    assert "<title>night" in _page(outside)
    following = subprocess.Popen(
        outside.command("logs", "-f"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=outside.environment,
        cwd=ROOT,
    )
    try:
        _sizes(outside)
        drained = _moves(outside)
        asked = outside.told("phase", "hold")
        assert "to stay in its phase" in asked
        stopped = outside.told("stop")
        assert ": STOPPED after step " in stopped
        followed, _ = following.communicate(timeout=60)
    finally:
        following.kill()
    assert "medr3: ending after this step" in followed, "the log was followed to its end"
    assert drained
    step = outside.status()["step"]
    assert outside.status()["state"] == "stopped"
    assert json.loads((folder / "manifest.json").read_text())["step"] == step

    assert f"goes on from the last checkpoint in {folder}" in outside.told(*training)
    outside.until(lambda found: found.get("state") == "training" and found["step"] > step, START_S, "steps after the resume")
    outside.told("status")
    assert f"resumed at step {step}" in outside.medr3("logs").stdout
    hurried = outside.told("stop", "--now")
    assert ": STOPPED" in hurried
    assert audit(folder).violations == []
    copies = list((outside.cluster.folder / "session_latest").glob("runtime_resources/working_dir_files/_ray_pkg_*/"))
    names = {path.name for copy in copies for path in copy.iterdir()}
    assert {"configs", "medr3", "pyproject.toml"} <= names and not names & {".venv", ".git", "runs", "tests", "docs", "deploy"}
    if os.environ.get("MEDR3_TRANSCRIPTS") == "1":
        _write_transcript(outside, folder)


def _page(outside: Outside) -> str:
    """The run's own page, for this machine sees the run's folder."""
    serving = subprocess.Popen(
        outside.command("dashboard", "--port", "0"), stdout=subprocess.PIPE, text=True, env=outside.environment, cwd=ROOT
    )
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().partition(": ")[2].partition(" ")[0]
        with urllib.request.urlopen(url, timeout=60) as answer:
            page: str = answer.read().decode()
            return page
    finally:
        serving.terminate()
        serving.wait(30)


def _sizes(outside: Outside) -> None:
    """One more engine, for which the autoscaler brings a node."""
    assert "for 2 engines (now 1)" in outside.told("scale", "--engines", "2")
    found = outside.until(lambda found: len(healthy(found)) == 2, ENGINE_S, "a second engine")
    assert len(set(found["nodes"].values())) == 2, "on a node of its own"
    outside.told("status")


def _moves(outside: Outside) -> str:
    """An engine leaves its node, and another takes its place elsewhere."""
    listed = json.loads(outside.medr3("drain", "--json").stdout)
    outside.told("drain")
    holds = {kind: node for node in listed for kind in node["runs"]}
    assert {"engine", "learner worker", "retrieval replica"} <= set(holds)
    assert "which cannot move" in outside.refused("drain", holds["learner worker"]["node"])
    assert "is the head" in outside.refused("drain", next(node["node"] for node in listed if node["head"]))
    leaving = str(holds["engine"]["node"])
    assert "1 engine(s) end their groups" in outside.told("drain", leaving, "--deadline", "60")
    outside.until(lambda found: leaving not in found["nodes"].values(), STEP_S, "the engine leaves its node")
    return leaving


def test_whatever_is_wrong_is_one_clear_line(outside: Outside, tmp_path: Path) -> None:
    training = ("submit", "configs/demo.yaml", f"run.folder={tmp_path / 'never'}", *SETTINGS)
    assert "nothing answers" in outside.refused("status", address="http://127.0.0.1:9")
    assert "write it like http://" in outside.refused("status", address="127.0.0.1:8265")
    nothing = {"RAY_AUTH_TOKEN_PATH": os.devnull}
    assert "has none: set RAY_AUTH_MODE=token" in outside.refused("status", RAY_AUTH_MODE="disabled", **nothing)
    assert "RAY_AUTH_TOKEN_PATH" in outside.refused("status", **nothing)
    wrong = outside.refused("status", RAY_AUTH_TOKEN="wrong", **nothing)
    assert "refuses the token from the environment variable RAY_AUTH_TOKEN: it is wrong or has expired" in wrong
    assert "the cluster does not know it" in outside.refused("status", "no-such-job")
    pool = outside.refused(*training, "rollout.num_engines=9")
    assert "room: engines: 9 × (1 CPU, 1 GPU, 0.001 rollout) are asked for, and 3 find room: there are at most " in pool
    assert "3 × rollout (1 CPU, 1 GPU, 1 rollout)" in pool


def test_another_version_is_told_apart(outside: Outside, tmp_path: Path) -> None:
    other = tmp_path / "medr3-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: medr3\nVersion: 9.9.9\n")
    # Not the checkout's own metadata, which stands in the folder that the command is started in.
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]), "PYTHONSAFEPATH": "1"}
    training = ("submit", "configs/demo.yaml", f"run.folder={tmp_path / 'never'}", *SETTINGS)
    assert "has 0.1.0, this is 9.9.9" in outside.refused(*training, **path)
    assert "the cluster's head has medr3 0.1.0, this is 9.9.9" in outside.refused("drain", **path)


def test_a_full_disk_is_told_before_anything_starts(outside: Outside, tmp_path: Path) -> None:
    """A file system of 64 KiB, which takes root to mount: a container of the checks has it."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        training = ("submit", "configs/demo.yaml", f"run.folder={small / 'run'}", *SETTINGS)
        assert "make room: 2 GiB are the least" in outside.refused(*training)
        with suppress(OSError), (small / "all").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert "No space left on device" in outside.refused(*training)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_job_of_any_kind_is_shown_and_stopped(outside: Outside) -> None:
    sending = f"from medr3.ops.jobs import *; print(submit_entrypoint(connect({outside.cluster.address!r}), 'echo begun && sleep 300'))"
    done = subprocess.run(
        [sys.executable, "-c", sending], capture_output=True, text=True, env=outside.environment, cwd=ROOT, check=True
    )
    job = done.stdout.strip()
    deadline = time.monotonic() + 120
    while json.loads(outside.medr3("status", job, "--json").stdout)["status"] != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "is no training that medr3 submit sent" in outside.refused("scale", job, "--engines", "2")
    assert "it does not say where its run is" in outside.refused("dashboard", job)
    assert outside.medr3("stop", job).stdout.strip() == f"{job}: STOPPED"


def _write_transcript(outside: Outside, folder: Path) -> None:
    """As it was typed and read; only folders, addresses and the long list of settings are put in terms of docs/operations.md."""
    opening = (
        "# One run on a cluster, from outside\n\nTyped and read by `tests/e2e/test_cluster_story.py` (`make transcripts` writes this page"
        " anew) on two cores: a head, Ray's\nautoscaler, and nodes that are processes of the same machine and count a GPU that is not"
        " there. The model is tiny and not\ntrained; numbers are as they came.\n\n"
    )
    replaced = {
        str(folder): "/shared/night",
        str(folder.parent / "model"): "/shared/model",
        outside.cluster.address: "http://127.0.0.1:8265",
        outside.environment["RAY_AUTH_TOKEN_PATH"]: "~/.ray/auth_token",
        " ".join(SETTINGS): "…",
    }
    shown = "\n\n".join(outside.typed)
    for here, there in replaced.items():
        shown = shown.replace(here, there)
    shown = re.sub(r"(Running entrypoint for job \S+: medr3 train \S+ --resume auto).*", r"\1 …", shown)
    shown = re.sub(r"\b(?!127\.0\.0\.1\b)\d+\.\d+\.\d+\.\d+\b", "10.0.0.2", shown)
    TRANSCRIPT.parent.mkdir(exist_ok=True)
    TRANSCRIPT.write_text(f"{opening}```console\n{shown}\n```\n", encoding="utf-8")
