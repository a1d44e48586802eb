"""Commands for those who keep runs going: on this machine by the run's folder, on a cluster by its dashboard's address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medr3.cli_common import Config, ForkOf, Json, NewIndex, Overrides, load_config
from medr3.errors import UserError

if TYPE_CHECKING:
    from medr3.config import RunConfig

RunOrJob = Annotated[
    str | None, typer.Argument(metavar="[RUN|JOB]", help="a run of this machine; with --address a job, the newest if left out")
]
Job = Annotated[str | None, typer.Argument(metavar="[JOB]", help="as submit printed it; the newest training if left out")]
Address = Annotated[str | None, typer.Option(help="the cluster's dashboard, such as http://127.0.0.1:8265")]
ClusterAddress = Annotated[str, typer.Option("--address", help="the cluster's dashboard, such as http://127.0.0.1:8265")]
STOP_TIMEOUT_S = 1800.0  # the longest step of a large model, its checkpoint, and a margin
DRAIN_S = 300.0  # groups of a few minutes finish; a spot notice is shorter


def submit(
    config: Config,
    address: ClusterAddress,
    overrides: Overrides = None,
    fork: ForkOf = None,
    new_index: NewIndex = False,
    as_json: Json = False,
) -> None:
    """Submit a training to a Ray cluster, as a job; the same command goes on where a stopped one ended."""
    resolved = load_config(config, overrides or [])
    _refuse_local_paths(resolved)
    if fork and not Path(fork).is_absolute():
        raise UserError(f"--fork {fork}: the cluster does not see this folder: name it as its nodes do, /a/shared/folder")
    refuse_what_cannot_fit(resolved)
    from medr3.ops import jobs
    from medr3.ops.connection import talking

    with talking(address):
        sent = jobs.submit(config, resolved, address, overrides or [], fork, new_index=new_index)
    words = "goes on from the last checkpoint in" if sent.resumes else "begins in"
    line = f"submitted {sent.job}, which {words} {sent.folder}; look at it with: medr3 status --address {address}"
    _print(line, {"job": sent.job, "folder": sent.folder, "resumes": sent.resumes}, as_json)


def _refuse_local_paths(config: RunConfig) -> None:
    """What a run reads and writes must be where every node sees it."""
    if not config.run.folder.is_absolute():
        raise UserError(
            f"run.folder is {config.run.folder}, which on a cluster lies in the job's own copy of the checkout and is lost with"
            " it: add run.folder=/a/shared/folder"
        )
    for key, path in (("model.path", config.model.path), ("retrieval.index", config.retrieval.index or None)):
        if path is not None and not Path(path).is_absolute():
            raise UserError(
                f"{key} is {path}, and the copy of the checkout that a cluster gets holds neither weights nor indexes: add"
                f" {key}=/a/shared/folder"
            )


def refuse_what_cannot_fit(config: RunConfig) -> None:
    """Before anything is started: GPUs that are too small for what the configuration puts on them.

    A model whose size cannot be told here, because it lies on the cluster's storage alone, is left to those who load it.
    """
    from medr3.ops.memory_check import report_memory

    try:
        problems = report_memory(config).problems
    except UserError:
        return
    if problems:
        raise UserError("\n".join(problems))


def status(target: RunOrJob = None, address: Address = None, as_json: Json = False) -> None:
    """Tell what a run is doing: phase, step, reward, speed, ages, pool, last checkpoint, time left."""
    if address:
        from medr3.ops import remote
        from medr3.ops.connection import talking

        with talking(address):
            found = remote.status(address, target)
    else:
        from medr3.ops import local

        found = local.run_status(local.find_run(target))
    from medr3.ops.telling import status_lines

    print(json.dumps(found, indent=2) if as_json else "\n".join(status_lines(found)))


def logs(
    address: ClusterAddress,
    job: Job = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job ends")] = False,
    as_json: Annotated[bool, typer.Option("--json", help='print {"line": …} for each line')] = False,
) -> None:
    """Show what a training on a cluster has printed."""
    from medr3.ops.connection import talking
    from medr3.ops.jobs import show_logs

    def show(line: str) -> None:
        print(json.dumps({"line": line}) if as_json else line, flush=True)

    try:
        with talking(address):
            show_logs(address, job, show, followed=follow)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None  # the usual way to stop looking


def stop(
    target: RunOrJob = None,
    address: Address = None,
    now: Annotated[
        bool, typer.Option("--now", help="not even after its step; steps since its last checkpoint are lost")
    ] = False,
    timeout: Annotated[float, typer.Option(help="seconds to wait for the end of a job")] = STOP_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """End a run after its step, with a checkpoint; the same train or submit goes on from there."""
    if not address:
        from medr3.ops import local

        line = local.stop_run(local.find_run(target), at_once=now)
        _print(line, {"said": line}, as_json)
        return
    from medr3.ops import remote
    from medr3.ops.connection import talking

    with talking(address):
        found = remote.stop(address, target, timeout, at_once=now)
    _print(f"{found['job']}: {found['job_status']}{_goes_on(found)}", found, as_json)


def _goes_on(found: dict[str, Any]) -> str:
    """A run that ended by itself says only its step, which is that of its last checkpoint; one that was hurried says both."""
    if "step" not in found:
        return ""
    last = found.get("last_checkpoint", found["step"])
    return f" after step {found['step']}; the same submit goes on from {f'step {last}' if last > 0 else 'the start'}"


def phase(
    command: Annotated[str, typer.Argument(metavar="advance|hold|back|auto", help="auto: its rules decide again")],
    target: RunOrJob = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Tell a run to leave its phase, to stay in it, or to go back; it obeys after its current step."""
    if address:
        line = _ask_run(address, target, ["phase", command])
    else:
        from medr3.ops.control import ask
        from medr3.ops.local import find_run

        line = ask(find_run(target), command)
    _print(line, {"said": line}, as_json)


def scale(
    engines: Annotated[
        str, typer.Option("--engines", metavar="N|auto", help="auto: as many as its settings and its load ask for")
    ],
    target: RunOrJob = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Set how many engines a run has, until it ends; the cluster's autoscaler brings the nodes."""
    if address:
        line = _ask_run(address, target, ["scale", "--engines", engines])
    else:
        from medr3.ops.control import resize
        from medr3.ops.local import find_run

        line = resize(find_run(target), engines)
    _print(line, {"said": line}, as_json)


def drain(
    node: Annotated[
        str | None,
        typer.Argument(metavar="[NODE]", help="its address or the beginning of its id; all are listed if left out"),
    ] = None,
    address: Address = None,
    deadline: Annotated[float, typer.Option(min=1, help="seconds until what still runs there is given up")] = DRAIN_S,
    force: Annotated[bool, typer.Option("--force", help="also where the learner is")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="until nothing of a run is left there, or the deadline has come")
    ] = False,
    as_json: Json = False,
) -> None:
    """Empty a node of a cluster before it goes: nothing new is placed there, engines move; without NODE, list nodes and what they run."""
    if address:
        from medr3.ops.connection import talking
        from medr3.ops.remote import ask_cluster

        flags = [flag for flag, on in (("--force", force), ("--wait", wait), ("--json", as_json)) if on]
        asked = ["drain", *([node] if node else []), "--deadline", f"{deadline:g}", *flags]
        with talking(address):
            print(ask_cluster(address, asked, patience_s=deadline if wait else 0))
        return
    from dataclasses import asdict

    from medr3.ops import nodes

    with nodes.joined():
        if node is None:
            found = nodes.node_reports()
            _print("\n".join(map(str, found)), [asdict(each) for each in found], as_json)
        else:
            line = nodes.drain(node, deadline, force=force)
            if wait:
                line += ": it is empty" if nodes.until_empty(node, deadline) else ": something of a run is still there"
            _print(line, {"said": line}, as_json)


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="the configuration that is to run")] = None,
    overrides: Overrides = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Look at everything that a run needs, here and on a cluster, and say how to mend what is not right."""
    from dataclasses import asdict

    from medr3.ops.doctor import examine

    resolved = load_config(config, overrides or []) if config is not None else None
    checks = examine(resolved, address)
    lines = [f"{'ok  ' if check.ok else 'FAIL'} {check}" for check in checks]
    _print("\n".join(lines), [asdict(check) for check in checks], as_json)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _ask_run(address: str, job: str | None, command: list[str]) -> str:
    from medr3.ops.connection import talking
    from medr3.ops.remote import ask_run

    with talking(address):
        return ask_run(address, job, command)


def _print(line: str, found: Any, as_json: bool) -> None:
    print(json.dumps(found, indent=2) if as_json else line)
