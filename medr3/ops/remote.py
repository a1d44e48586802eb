"""Commands from outside a cluster: found by their job, carried out where the run's folder is, through the job server alone.

::

    medr3 scale --address URL ──▶ job: python -m medr3.ops.relay … scale FOLDER ──▶ pool.json in the run's folder ──▶ the run
                        answer ◀── one line of the job's log, after which the job is forgotten

So nothing but the dashboard's port has to be reachable, and its token is the only one there is.
"""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from medr3.errors import UserError
from medr3.ops.connection import connect, first_line
from medr3.ops.jobs import FOLDER, JobReport, find_training, submit_entrypoint, wait_for_end
from medr3.ops.jobs import stop as stop_job
from medr3.ops.relay import ANSWER

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

NOT_THERE_YET = ("has not started", "no such run folder")  # what the head says of a run whose driver has written nothing
RELAY_TIMEOUT_S = 120.0  # a command takes 2 to 4 s, most of which Ray needs to start a job; a busy head takes longer


def ask_run(address: str, job: str | None, command: list[str]) -> str:
    """What `medr3 COMMAND` prints for the run of a job, its newest training where none is named."""
    client = connect(address)
    return relay(client, _with_folder(find_training(client, job), command))


def ask_cluster(address: str, command: list[str], patience_s: float = 0) -> str:
    """What `medr3 COMMAND` prints on the cluster's head; `patience_s` is what the command itself may wait for."""
    return relay(connect(address), command, patience_s)


def status(address: str, job: str | None) -> dict[str, Any]:
    """What the cluster says about the job, and the run about itself."""
    client = connect(address)
    report = find_training(client, job)
    found: dict[str, Any] = {"job": report.job, "job_status": report.status}
    if FOLDER not in report.about:
        return report.as_dict() | found
    if report.ended and report.status != "SUCCEEDED":
        found["message"] = last_words(client, report)
    try:
        run = json.loads(relay(client, _with_folder(report, ["status", "--json"])))
    except UserError as error:
        if not any(words in str(error) for words in NOT_THERE_YET):
            raise
        return found | {"state": "starting" if not report.ended else "ended before it began"}
    return found | run


def stop(address: str, job: str | None, timeout_s: float, *, at_once: bool) -> dict[str, Any]:
    """Ends a job and waits for its end; what is known of it then."""

    def hurry(client: JobSubmissionClient, report: JobReport) -> None:
        """The job server's own signal was the first, and the driver's second one ends it at once."""
        with suppress(UserError):  # it has ended by itself meanwhile
            relay(client, _with_folder(report, ["stop"]))

    report = stop_job(address, job, timeout_s, hurry if at_once else None)
    if FOLDER not in report.about:
        return {"job": report.job, "job_status": report.status}
    return status(address, report.job)


def last_words(client: JobSubmissionClient, report: JobReport) -> str:
    """Why a job ended: the command line's own line where there is one."""
    lines = [line.strip() for line in client.get_job_logs(report.job).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("medr3: ")]
    return (ours or lines or [report.message])[-1][:500]


def relay(client: JobSubmissionClient, command: list[str], patience_s: float = 0) -> str:
    """Carries a command out on the head."""
    entrypoint = shlex.join(["python", "-m", "medr3.ops.relay", metadata.version("medr3"), *command])
    job = submit_entrypoint(client, entrypoint, about={"medr3.relay": command[0]})
    report = wait_for_end(client, job, RELAY_TIMEOUT_S + patience_s)
    logs: str = client.get_job_logs(job)
    with suppress(RuntimeError):  # it has said what it had to say, and there will be many
        client.delete_job(job)
    return read_answer(logs, command[0], report.message)


def read_answer(logs: str, command: str, otherwise: str) -> str:
    """What a command printed, out of its job's log; `otherwise` is told where the log says nothing."""
    said: Any = None
    with suppress(ValueError, RecursionError):  # a line that something else wrote into, or that was cut off
        answers = [line for line in logs.split("\n") if line.startswith(ANSWER)]
        said = json.loads(answers[-1].removeprefix(ANSWER)) if answers else None
    if isinstance(said, dict) and isinstance(said.get("error"), str) and said["error"].strip():
        raise UserError(said["error"])
    if isinstance(said, dict) and isinstance(said.get("printed"), str):
        return str(said["printed"].rstrip("\n"))
    last = next((line for line in reversed(logs.splitlines()) if line.strip()), otherwise)
    raise UserError(
        f"the cluster's head cannot carry out medr3 {command} ({first_line(last)}): is this version installed there? Look"
        " with: medr3 doctor --address URL"
    )


def _with_folder(report: JobReport, command: list[str]) -> list[str]:
    if FOLDER not in report.about:
        raise UserError(f"job {report.job} is no training that medr3 submit sent: name one of those, or none for the newest")
    return [*command, report.about[FOLDER]]
