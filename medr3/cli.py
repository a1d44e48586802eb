"""The command line. Commands import what they need when they run, so that `medr3 --help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medr3.errors import UserError

if TYPE_CHECKING:
    from medr3.config import RunConfig

app = typer.Typer(
    name="medr3",
    help="Train language models to reason over medical questions while searching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/demo.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as rollout.num_engines=4")]
Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="run folder, or its name below runs/; the newest if left out")]
RunOrJob = Annotated[str | None, typer.Argument(metavar="[RUN|JOB]", help="a run of this machine; with --address a job")]
Address = Annotated[str | None, typer.Option(help="the cluster's dashboard, such as http://127.0.0.1:8265")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]

USER_ERROR_EXIT = 2  # as for a wrong command line: nothing was started, the caller can mend it


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[Literal["auto", "never"], typer.Option(help="auto: go on where the run folder's manifest ends")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved configuration and end")] = False,
) -> None:
    """Train on this machine, or within a cluster job."""
    resolved = load_config(config, overrides or [])
    if dry_run:
        import yaml

        print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    from medr3.run.train import train as run_training

    raise typer.Exit(run_training(resolved, resume))


@app.command()
def submit(
    config: Config, address: Annotated[str, typer.Option(help="the cluster's dashboard")], overrides: Overrides = None
) -> None:
    """Submit a training to a Ray cluster, as a job."""
    resolved = load_config(config, overrides or [])
    if not Path(resolved.run.folder).is_absolute():
        raise UserError(
            f"run.folder is {resolved.run.folder}, which on a cluster lies in the job's own copy of the checkout and is lost with"
            " it: add run.folder=/a/shared/folder"
        )
    from medr3.ops import jobs

    job = jobs.submit(config, address, overrides or [])
    print(f"submitted {job}; look at it with: medr3 status --address {address} {job}")


@app.command()
def status(target: RunOrJob = None, address: Address = None, as_json: Json = False) -> None:
    """Tell what a run, or a job of a cluster, is doing."""
    if address:
        from medr3.ops import jobs

        found = jobs.job_status(address, _job(target)).as_dict()
    else:
        from medr3.ops import local

        found = local.run_status(local.find_run(target))
    print(json.dumps(found, indent=2) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))


@app.command()
def stop(target: RunOrJob = None, address: Address = None) -> None:
    """End a run, or a job of a cluster."""
    if address:
        from medr3.ops import jobs

        report = jobs.stop(address, _job(target))
        print(f"{report.job}: {report.status}")
    else:
        from medr3.ops import local

        print(local.stop_run(local.find_run(target)))


@app.command()
def report(run: Run = None) -> None:
    """Write the run's report.html."""
    from medr3.ops.local import find_run

    run_folder = find_run(run)
    from medr3.observe.report import write_report

    print(write_report(run_folder))


@app.command()
def audit(run: Run = None, as_json: Json = False) -> None:
    """Check from its files that a run kept its promises."""
    from dataclasses import asdict

    from medr3.ops.local import find_run
    from trajectories.audit import audit as audit_files

    found = audit_files(find_run(run))
    if as_json:
        print(json.dumps({**asdict(found), "ok": found.ok}, indent=2))
    else:
        print("\n".join(f"violation: {line}" for line in found.violations) or "every promise was kept")
        print(
            f"{found.admitted:,} groups admitted: {found.trained:,} trained, {found.dropped:,} dropped, {found.voided:,} voided,"
            f" {len(found.open):,} open; {found.rolled_back:,} endings taken back by resumes\n"
            f"{found.rows:,} rows, {found.trained_tokens:,} trained tokens, the oldest {found.max_age} versions old;"
            f" {found.published:,} versions published"
        )
    raise typer.Exit(0 if found.ok else 1)


def load_config(path: Path, overrides: list[str]) -> RunConfig:
    """The resolved configuration; every problem in it is one line."""
    from pydantic import ValidationError

    from medr3.config import RunConfig, load
    from medr3.validation import describe_validation

    try:
        return load(path, overrides)
    except ValidationError as error:
        raise UserError("\n".join(describe_validation(error, RunConfig))) from None


def _job(target: str | None) -> str:
    if target is None:
        raise UserError("name the job, as submit printed it: medr3 status --address URL JOB")
    return target


def main() -> None:
    """Entry point: what a person can mend is one line each on stderr; MEDR3_DEBUG=1 shows the traceback as well."""
    try:
        app()
    except UserError as error:
        if os.environ.get("MEDR3_DEBUG") == "1":
            raise
        for line in str(error).splitlines():
            print(f"medr3: {line}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT)


if __name__ == "__main__":
    main()
