"""Runs on a cluster, as Ray jobs: submit, status, stop."""

from __future__ import annotations

import json
import re
import shlex
import socket
import time
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medr3.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECT_TIMEOUT_S = 5.0  # a right address answers in milliseconds; a wrong one should not cost minutes
PROBE_TIMEOUT_S = 180.0  # a cold cluster starts a job's first process in seconds, a scaled-to-zero one in minutes
STOP_TIMEOUT_S = 60.0  # Ray kills a job that has not ended a few seconds after SIGTERM
POLL_S = 0.5
# What a job's copy of the checkout must not hold: too large, or wrong there. An egg-info would hide an old installation.
EXCLUDES = ["/.venv/", "/runs/", "/.git/", "*.egg-info", "__pycache__", "*.safetensors", "*.parquet", "wandb/"]
SECRET = re.compile(r"api_?key|secret|password|credential|auth_?token", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JobReport:
    """What the cluster says about one job."""

    job: str
    status: str
    message: str
    entrypoint: str

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server, or one clear line."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address}: write it like http://127.0.0.1:8265, the address of the cluster's dashboard")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nothing answers ({error.strerror or error}): is the cluster up, and the port forwarded"
            " (ray dashboard cluster.yaml)?"
        ) from None
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"--address {address}: the cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the"
            " file that holds the cluster's token"
        ) from None
    except Exception as error:  # whatever else listens there answers in ways of its own
        raise UserError(f"--address {address}: this is no Ray dashboard ({_first_line(error)})") from None


def checkout() -> Path:
    """The root of the checkout that this package is run from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():
        raise UserError(
            f"submit sends a checkout to the cluster, but {root} is none: install with pip install -e . from a checkout"
        )
    return root


def submit(config: Path, address: str, overrides: list[str]) -> str:
    """Submits `medr3 train` of a configuration of this checkout; returns the job's name."""
    secrets = [override for override in overrides if SECRET.search(override.partition("=")[0])]
    if secrets:
        key = secrets[0].partition("=")[0]
        raise UserError(
            f"{key}: overrides are readable on the dashboard: set secrets in the environment of the cluster's nodes"
        )
    root = checkout()
    if not config.resolve().is_relative_to(root):
        raise UserError(f"{config}: a submitted configuration must lie in the checkout {root}, which is what the cluster gets")
    relative = str(config.resolve().relative_to(root))
    client = connect(address)
    check_distribution(client)
    entrypoint = shlex.join(["medr3", "train", relative, "--resume", "auto", *overrides])
    about = {"medr3.config": relative, "medr3.version": metadata.version("medr3")}
    return submit_entrypoint(client, entrypoint, working_dir=root, about=about)


def submit_entrypoint(
    client: JobSubmissionClient, entrypoint: str, *, working_dir: Path | None = None, about: dict[str, str] | None = None
) -> str:
    """Submits one shell command, in a copy of `working_dir` where one is given; returns the job's name."""
    runtime_env = {"working_dir": str(working_dir), "excludes": EXCLUDES} if working_dir else {}
    try:
        job: str = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, metadata=about or {})
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the cluster did not take the job: {_first_line(error)}") from None
    return job


def check_distribution(client: JobSubmissionClient) -> None:
    """Raises unless every node has this version installed, with its vLLM plugin: without it no engine can take weights."""
    source = resources.files("medr3.ops").joinpath("cluster_probe.py").read_text(encoding="utf-8")
    job = submit_entrypoint(client, shlex.join(["python", "-c", source]), about={"medr3.version": metadata.version("medr3")})
    report = wait_for_end(client, job, PROBE_TIMEOUT_S)
    logs: str = client.get_job_logs(job)
    answers = [line for line in logs.splitlines() if line.startswith("medr3-probe ")]
    if not answers:
        last = next((line for line in reversed(logs.splitlines()) if line.strip()), report.message)
        raise UserError(
            f"the check of the cluster's installation ended {report.status}: {last}; see job {job} on the dashboard"
        )
    wanted = metadata.version("medr3")
    for node, version, plugin in json.loads(answers[-1].removeprefix("medr3-probe ")):
        mend = "run the setup_commands of cluster.yaml there"
        if version != wanted:
            raise UserError(f"node {node} has medr3 {version or 'not at all'}, this is {wanted}: {mend}")
        if not plugin:
            raise UserError(f"node {node} has medr3 {version} without its vLLM plugin medr3_weights: {mend}")


def job_status(address: str, job: str) -> JobReport:
    """What the cluster says about a job now."""
    return _report(connect(address), job)


def stop(address: str, job: str) -> JobReport:
    """Asks a job to end and waits until it has; a job that has already ended is left as it is."""
    client = connect(address)
    report = _report(client, job)
    if report.ended:
        return report
    client.stop_job(job)
    return wait_for_end(client, job, STOP_TIMEOUT_S)


def wait_for_end(client: JobSubmissionClient, job: str, timeout_s: float) -> JobReport:
    """Waits for a job's end; one clear line if it does not come."""
    deadline = time.monotonic() + timeout_s
    while not (report := _report(client, job)).ended:
        if time.monotonic() > deadline:
            raise UserError(f"job {job} is still {report.status} after {timeout_s:.0f} s: {report.message}")
        time.sleep(POLL_S)
    return report


def _report(client: JobSubmissionClient, job: str) -> JobReport:
    try:
        info = client.get_job_info(job)
    except RuntimeError as error:
        raise UserError(f"job {job}: the cluster does not know it ({_first_line(error)})") from None
    return JobReport(job=job, status=info.status.value, message=_first_line(info.message or ""), entrypoint=info.entrypoint)


def _first_line(text: object) -> str:
    return next((line.strip()[:300] for line in str(text).splitlines() if line.strip()), "")
