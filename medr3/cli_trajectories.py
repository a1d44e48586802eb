"""`medr3 trajectories`: look at what a run recorded. Commands import what they need when they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from medr3.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from trajectories.reading import Record

T = TypeVar("T")

trajectories = typer.Typer(
    help="Look at a run's episodes, also while it goes on: read one, count them, take them elsewhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Target = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="run folder, or its name below runs/; the newest if left out")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]

PIPED_WIDTH = 200  # columns where no terminal says how wide it is: a table is not folded into a file


@trajectories.command("show")
def show(
    run: Target = None,
    episode: Annotated[
        str | None, typer.Argument(metavar="[GROUP[/N]]", help="its N-th episode, from 0; without, the last groups")
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="how many groups")] = 20,
    as_json: Json = False,
) -> None:
    """Print one episode as a person would read it, or a table of the last groups."""
    folder, record = _open(run)
    from medr3.observe.asked import AskedQuestions
    from medr3.observe.showing import group_table, last_groups, show_episode
    from medr3.redaction import redact_row, redacts

    if episode is None:
        lines = _read(folder, lambda: last_groups(record, last))
        if not lines:
            raise UserError(f"{folder}: no group has finished yet: nothing to show")
        if as_json:
            print(json.dumps([line.as_dict() for line in lines], indent=2))
        else:
            _console().print(group_table(lines))
        return
    row = _read(folder, lambda: record.find(episode))
    if row is None:
        raise UserError(
            f"{folder}: no recorded episode {episode!r}: medr3 trajectories show {folder.name} names the last groups"
        )
    shown = redact_row(row) if redacts(folder) else row
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        show_episode(_console(), shown, AskedQuestions(folder)(row))


@trajectories.command("stats")
def stats(run: Target = None, as_json: Json = False) -> None:
    """Count episodes by phase, source and outcome: rewards, lengths, searches, ages, drops, and whether long ones are lost."""
    folder, record = _open(run)
    from medr3.observe.trajectory_stats import stats_table, trajectory_stats

    found = _read(folder, lambda: trajectory_stats(record))
    if not found.cells:
        raise UserError(f"{folder}: no group has finished yet: nothing to count")
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _console().print(stats_table(found))


@trajectories.command("export")
def export(
    out: Annotated[Path, typer.Option(help="a new file, .parquet, .jsonl or .arrow")],
    run: Target = None,
    phase: Annotated[str, typer.Option(help="of this phase alone")] = "",
    outcome: Annotated[str, typer.Option(help="trained, dropped, voided, open or rolled_back")] = "",
    step: Annotated[int | None, typer.Option(min=1, help="of the groups that ended with this step")] = None,
) -> None:
    """Write a run's rows into one file."""
    from medr3.observe.trajectory_export import check_target, export_rows
    from medr3.redaction import redacts
    from trajectories.groups import Outcome
    from trajectories.reading import OPEN, ROLLED_BACK

    outcomes = [*(each.value for each in Outcome), OPEN, ROLLED_BACK]
    if outcome and outcome not in outcomes:
        raise UserError(f"--outcome {outcome}: there are {', '.join(outcomes)}")
    check_target(out)
    folder, record = _open(run)
    count = _read(folder, lambda: export_rows(record, out, phase, outcome, step, redacted=redacts(folder)))
    if not count:
        wanted = {"--phase": phase, "--outcome": outcome, "--step": step}
        said = " ".join(f"{name} {value}" for name, value in wanted.items() if value)
        raise UserError(
            f"{folder}: no episode matches {said}: nothing was written" if said else f"{folder}: has no episode yet"
        )
    print(f"{count:,} episodes in {out}")


def _open(run: str | None) -> tuple[Path, Record]:
    from medr3.ops.local import find_run
    from trajectories.reading import Record

    folder = find_run(run)
    return folder, _read(folder, lambda: Record(folder))


def _read(folder: Path, what: Callable[[], T]) -> T:
    """A damaged or missing file is one line."""
    try:
        return what()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read as a run: {' '.join(str(error).split())}") from None


def _console() -> Console:
    """Text is printed as it is: no markup, no emoji codes, no colours of its own finding."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
