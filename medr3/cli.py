"""The command line. Commands import what they need when they run, so that `medr3 --help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from medr3.cli_ablate import ablate
from medr3.cli_bench import bench
from medr3.cli_chaos import chaos
from medr3.cli_common import Config, ForkOf, Json, NewIndex, Overrides, Run, load_config
from medr3.cli_dashboard import dashboard
from medr3.cli_data import data
from medr3.cli_eval import evaluate
from medr3.cli_ops import doctor, drain, logs, phase, refuse_what_cannot_fit, scale, status, stop, submit
from medr3.cli_retrieval import retrieval
from medr3.cli_rewards import rewards
from medr3.cli_trajectories import trajectories
from medr3.errors import UserError
from security.hiding import scrub

app = typer.Typer(
    name="medr3",
    help="Train language models to reason over medical questions while searching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

USER_ERROR_EXIT = 2  # as for a wrong command line: nothing was started, the caller can mend it


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|PATH|never", help="auto: where the run folder ends; PATH: a run folder, or a checkpoint in one"
        ),
    ] = "auto",
    fork: ForkOf = None,
    new_index: NewIndex = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved configuration and its memory; end")] = False,
) -> None:
    """Train on this machine, or within a cluster job."""
    resolved = load_config(config, overrides or [])
    if dry_run:
        import yaml

        print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        from medr3.ops.memory_check import report_memory

        memory = report_memory(resolved)
        print("\n".join(memory.table), file=sys.stderr)
        if memory.problems:
            raise UserError("\n".join(memory.problems))
        return
    refuse_what_cannot_fit(resolved)
    from medr3.run.forking import named_fork
    from medr3.run.train import train as run_training

    raise typer.Exit(run_training(resolved, resume, named_fork(fork, new_index=new_index)))


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="a new folder for the model, its tokenizer and its model card")],
    run: Run = None,
    checkpoint: Annotated[str, typer.Option(help="last, best (by held-out score), or the step of a kept one")] = "last",
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="the run's own if left out")] = None,
) -> None:
    """Write a trained model as a folder that transformers and vLLM open."""
    from medr3.ops.local import find_run

    run_folder = find_run(run)
    from medr3.ops.exporting import export as export_run

    print(export_run(run_folder, out, checkpoint, dtype))


@app.command()
def report(run: Run = None) -> None:
    """Write the run's page into its folder, as one file: report.html."""
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


@app.command()
def replay(
    run: Run = None,
    overrides: Overrides = None,
    first: Annotated[int, typer.Option("--from", min=1, help="the first step to train again")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="how many; to the end if left out")] = None,
    out: Annotated[Path | None, typer.Option(help="a new folder for the resulting model")] = None,
) -> None:
    """Train again on what a run recorded, without engines, and compare; with KEY=VALUE, see what another setting gives."""
    from medr3.ops.local import find_run

    if run is not None and "=" in run:  # the run was left out, and this is the first override
        overrides, run = [run, *(overrides or [])], None
    run_folder = find_run(run)
    from medr3.run.replay import CONFIG, open_recording
    from medr3.run.replay import replay as replay_recording

    recording = open_recording(run_folder)
    config = load_config(run_folder / CONFIG, overrides or [])
    raise typer.Exit(replay_recording(recording, config, first=first, count=steps, out=out, overridden=bool(overrides)))


for _command in (submit, status, logs, stop, phase, scale, drain, doctor):
    app.command()(_command)
app.add_typer(bench, name="bench")
app.add_typer(chaos, name="chaos")
app.add_typer(dashboard, name="dashboard")
app.add_typer(data, name="data")
app.add_typer(retrieval, name="retrieval")
app.add_typer(rewards, name="rewards")
app.add_typer(trajectories, name="trajectories")
app.command("eval")(evaluate)
app.command()(ablate)


def main() -> None:
    """Entry point: what a person can mend is one line each on stderr; MEDR3_DEBUG=1 shows the traceback as well."""
    try:
        app()
    except UserError as error:
        if os.environ.get("MEDR3_DEBUG") == "1":
            raise
        for line in error.lines():
            print(f"medr3: {scrub(line)}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT)


if __name__ == "__main__":
    main()
