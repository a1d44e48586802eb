"""Jobs on a real cluster of its own: token authentication, dashboard on the loopback, ended by process id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import small_run
from tests.e2e.ray_head import end, free_ports, until_answering
from trajectories.audit import audit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]

    def run(self, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, env={**self.environment, **changed}, cwd=ROOT, timeout=300, check=False
        )

    def medr3(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "medr3.cli", *arguments, **changed)

    def jobs(self, code: str) -> str:
        """Runs a line with `client` at hand. A process of its own, for Ray reads the token once per process."""
        opening = f"from medr3.ops.jobs import *; client = connect({self.address!r}); "
        done = self.run(sys.executable, "-c", opening + code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="medr3-"))  # short: Ray puts Unix sockets below it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    log = (folder / "start.log").open("w")
    head = subprocess.Popen(
        [
            "ray", "start", "--head", "--block", "--num-cpus=8", "--node-ip-address=127.0.0.1", f"--port={gcs}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", f"--temp-dir={folder}", "--object-store-memory=100000000",
        ],
        env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        until_answering(head, dashboard, folder / "start.log")
        yield Cluster(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        end(head, folder)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_is_submitted_watched_and_stopped(cluster: Cluster) -> None:
    job = cluster.jobs("print(submit_entrypoint(client, 'echo begun && sleep 300'))")

    deadline = time.monotonic() + 120
    found: dict[str, str] = {}
    while found.get("status") != "RUNNING" and time.monotonic() < deadline:
        found = json.loads(cluster.medr3("status", "--address", cluster.address, job, "--json").stdout)
    assert found["status"] == "RUNNING"
    assert found["entrypoint"] == "echo begun && sleep 300"

    stopped = cluster.medr3("stop", "--address", cluster.address, job)
    assert stopped.stdout.strip() == f"{job}: STOPPED", stopped.stderr

    unknown = cluster.medr3("status", "--address", cluster.address, "no-such-job")
    assert unknown.returncode == 2
    assert "the cluster does not know it" in unknown.stderr

    refused = cluster.medr3("status", "--address", cluster.address, job, RAY_AUTH_TOKEN_PATH=os.devnull, RAY_AUTH_TOKEN="wrong")
    assert refused.returncode == 2
    assert "asks for a token" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_training_is_sent_with_its_checkout_and_without_what_does_not_belong_there(cluster: Cluster) -> None:
    """The configuration asks for the impossible, so the job ends at once, with the command line's own words in its log."""
    done = cluster.run(
        sys.executable, "-c",
        "from pathlib import Path; from medr3.ops.jobs import *; "
        f"job = submit(Path('configs/demo.yaml'), {cluster.address!r}, ['learner.workers=0']); "
        f"client = connect({cluster.address!r}); print(wait_for_end(client, job, 180).status, client.get_job_logs(job), sep='\\n')",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("FAILED")
    assert "medr3: learner.workers: input should be greater than or equal to 1, got 0" in done.stdout


def test_a_submitted_training_trains_and_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "submitted"
    submitted = cluster.medr3(
        "submit",
        "configs/demo.yaml",
        "--address",
        cluster.address,
        *small_run.SMALL,
        f"run.folder={folder}",
        "run.name=submitted",
    )
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.split()[1].rstrip(";")
    deadline = time.monotonic() + 300
    while not (folder / "manifest.json").exists():
        found = json.loads(cluster.medr3("status", "--address", cluster.address, job, "--json").stdout)
        assert found["status"] in ("PENDING", "RUNNING"), cluster.jobs(f"print(client.get_job_logs({job!r}))")[-3000:]
        assert time.monotonic() < deadline, cluster.jobs(f"print(client.get_job_logs({job!r}))")[-3000:]
        time.sleep(2)
    assert json.loads(cluster.medr3("status", str(folder), "--json").stdout)["step"] >= 0
    stopped = cluster.medr3("stop", "--address", cluster.address, job)
    assert stopped.stdout.strip() == f"{job}: STOPPED", stopped.stderr
    assert audit(folder).violations == []
