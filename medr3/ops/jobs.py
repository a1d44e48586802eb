"""Runs on a cluster, as Ray jobs: sent, found, followed, stopped."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.ops.check import require
from medr3.ops.cluster_check import Facts, check_cluster
from medr3.ops.connection import connect, first_line
from security.hiding import holds_secret

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PROBE_TIMEOUT_S = 180.0  # a cold cluster starts a job's first process in seconds, a scaled-to-zero one in minutes
AGENT_TIMEOUT_S = 90.0  # the dashboard of a head that has just started answers before the head can take jobs
POLL_S = 0.5
FOLDER = "medr3.folder"  # in a job's metadata: where its run lives
# What a job's copy of the checkout must not hold: too large, or wrong there. An egg-info would hide an old installation.
EXCLUDES = [
    "/.venv/", "/runs/", "/.git/", "/.ci/", "/deploy/", "/docs/", "/tests/", "*.egg-info", "__pycache__", "*.safetensors",
    "*.parquet", "wandb/", ".env", ".env.*", ".netrc", ".medr3-secrets", "*.pem", "*auth_token*",
]  # fmt: skip
SECRET = re.compile(r"api_?key|secret|password|credential|auth_?token", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JobReport:
    """What the cluster says about one job."""

    job: str
    status: str
    message: str
    entrypoint: str
    about: dict[str, str] = field(default_factory=dict)  # its metadata

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A training that the cluster took."""

    job: str
    folder: str
    resumes: bool


def checkout() -> Path:
    """The root of the checkout that this package is run from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():
        raise UserError(
            f"submit sends a checkout to the cluster, but {root} is none: install with pip install -e . from a checkout"
        )
    return root


def submit(
    path: Path, config: RunConfig, address: str, overrides: list[str], fork: str | None = None, *, new_index: bool = False
) -> Submitted:
    """Submits `medr3 train` of a configuration of this checkout, once the cluster was found to be able to run it."""
    split = [override.partition("=") for override in overrides]
    secrets = [key for key, _, value in split if SECRET.search(key) or holds_secret(value)]
    if secrets:
        raise UserError(
            f"{secrets[0]}: overrides are readable on the dashboard: set secrets in the environment of the cluster's nodes"
        )
    root, folder = checkout(), str(config.run.folder)
    if not path.resolve().is_relative_to(root):
        raise UserError(f"{path}: a submitted configuration must lie in the checkout {root}, which is what the cluster gets")
    relative = str(path.resolve().relative_to(root))
    client = connect(address)
    if busy := next((job for job in trainings(client) if job.about[FOLDER] == folder and not job.ended), None):
        raise UserError(f"{folder}: job {busy.job} trains there: stop it first, or name another run.folder")
    facts = probe(client, folder)
    require(check_cluster(facts, config))
    entrypoint = training_command(relative, overrides, fork, new_index=new_index)
    about = {"medr3.config": relative, "medr3.version": metadata.version("medr3"), "medr3.run": config.run.name, FOLDER: folder}
    job = submit_entrypoint(client, entrypoint, working_dir=root, about=about, environment=environment(config))
    return Submitted(job, folder, facts["folder"]["resumes"])


def training_command(config: str, overrides: list[str], fork: str | None = None, *, new_index: bool = False) -> str:
    """What the job runs.

    Example:
        >>> training_command("configs/demo.yaml", ["run.seed=3"], "/runs/parent@40")
        'medr3 train configs/demo.yaml --resume auto --fork /runs/parent@40 run.seed=3'
    """
    forked = ["--fork", fork, *(["--new-index"] if new_index else [])] if fork else []
    return shlex.join(["medr3", "train", config, "--resume", "auto", *forked, *overrides])


def environment(config: RunConfig) -> dict[str, str]:
    """Of the job's driver. Ray gives a job 3 s to end unless told otherwise; a run that is asked to end finishes its step first."""
    patience_s = config.run.stall_timeout_s + config.learner.step_timeout_s  # a step that takes longer is given up anyway
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(round(patience_s)), "PYTHONUNBUFFERED": "1"}


def submit_entrypoint(
    client: JobSubmissionClient,
    entrypoint: str,
    *,
    working_dir: Path | None = None,
    about: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Submits one shell command, in a copy of `working_dir` where one is given; returns the job's name."""
    runtime_env: dict[str, Any] = {"env_vars": environment} if environment else {}
    if working_dir:
        runtime_env |= {"working_dir": str(working_dir), "excludes": EXCLUDES}
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            job: str = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, metadata=about or {})
            return job
        except (RuntimeError, ValueError) as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise UserError(f"the cluster did not take the job: {first_line(error)}") from None
        time.sleep(POLL_S)


def probe(client: JobSubmissionClient, folder: str = "") -> Facts:
    """What every node has, and whether all of them see `folder`; nothing of this project needs to be installed there."""
    source = resources.files("medr3.ops").joinpath("cluster_probe.py").read_text(encoding="utf-8")
    entrypoint = shlex.join(["python", "-c", source, folder])
    job = submit_entrypoint(client, entrypoint, about={"medr3.version": metadata.version("medr3")})
    report = wait_for_end(client, job, PROBE_TIMEOUT_S)
    logs: str = client.get_job_logs(job)
    answers = [line for line in logs.splitlines() if line.startswith("medr3-probe ")]
    if not answers:
        last = next((line for line in reversed(logs.splitlines()) if line.strip()), report.message)
        raise UserError(f"the look at the cluster ended {report.status}: {first_line(last)}; see job {job} on the dashboard")
    with suppress(RuntimeError):  # it has said what it had to say
        client.delete_job(job)
    facts: Facts = json.loads(answers[-1].removeprefix("medr3-probe "))
    return facts


def trainings(client: JobSubmissionClient) -> list[JobReport]:
    """What `submit` sent, the newest first."""
    jobs = [job for job in client.list_jobs() if FOLDER in (job.metadata or {})]
    return [_as_report(job) for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)]


def find_training(client: JobSubmissionClient, job: str | None) -> JobReport:
    """The job of that name; without one, the newest training."""
    if job is not None:
        return report_of(client, job)
    if not (found := trainings(client)):
        raise UserError("no training was ever submitted to this cluster: do it with medr3 submit")
    return found[0]


def stop(
    address: str, job: str | None, timeout_s: float, at_once: Callable[[JobSubmissionClient, JobReport], None] | None
) -> JobReport:
    """Asks a job to end and waits until it has; one that has already ended is left as it is. `at_once` hurries it."""
    client = connect(address)
    report = find_training(client, job)
    if report.ended:
        return report
    client.stop_job(report.job)
    if at_once is not None:
        at_once(client, report)
    return wait_for_end(client, report.job, timeout_s)


async def follow(client: JobSubmissionClient, job: str) -> AsyncIterator[str]:
    """A job's log as it comes, in lines, until the job ends."""
    rest = ""
    try:
        async for text in client.tail_job_logs(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                yield line
    except RuntimeError as error:
        raise UserError(f"job {job}: its log broke off ({first_line(error)}): the run itself goes on; look again") from None
    if rest:
        yield rest


def show_logs(address: str, job: str | None, show: Callable[[str], None], *, followed: bool) -> None:
    """A job's log so far, or until the job ends."""
    client = connect(address)
    report = find_training(client, job)
    if not followed or report.ended:
        for line in client.get_job_logs(report.job).splitlines():
            show(line)
        return

    async def pass_on() -> None:
        async for line in follow(client, report.job):
            show(line)

    asyncio.run(pass_on())


def wait_for_end(client: JobSubmissionClient, job: str, timeout_s: float) -> JobReport:
    """Waits for a job's end; one clear line if it does not come."""
    deadline = time.monotonic() + timeout_s
    while not (report := report_of(client, job)).ended:
        if time.monotonic() > deadline:
            raise UserError(f"job {job} is still {report.status} after {timeout_s:.0f} s: {report.message}")
        time.sleep(POLL_S)
    return report


def report_of(client: JobSubmissionClient, job: str) -> JobReport:
    """What the cluster says about a job now."""
    try:
        return _as_report(client.get_job_info(job))
    except RuntimeError as error:
        raise UserError(f"job {job}: the cluster does not know it ({first_line(error)})") from None


def _as_report(info: JobDetails) -> JobReport:
    name = info.submission_id or info.job_id or ""
    return JobReport(name, info.status.value, first_line(info.message or ""), info.entrypoint, info.metadata or {})
