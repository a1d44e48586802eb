"""The closing table: what a run reached, for the terminal that it ran in."""

from __future__ import annotations

import io
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from medr3.observe.record import wilson

PLAIN_WIDTH = 132  # of a pipe or a log file, which has no width of its own


def closing_table(summary: dict[str, Any], *, plain: bool | None = None) -> str:
    """Held-out accuracy per stage and phase, then one line of figures. Plain ASCII text unless stdout is a terminal.

    Example:
        >>> print(closing_table({"heldout": {"cold_start": 0.4, "joint": 0.9}, "wall_s": 90.0}, plain=True).splitlines()[-1])
        wall time 1.5 min
    """
    plain = not sys.stdout.isatty() if plain is None else plain
    width = PLAIN_WIDTH if plain else None
    console = Console(file=io.StringIO(), width=width, force_terminal=not plain, color_system=None if plain else "auto")
    console.print(_accuracy(summary, plain))
    console.print(_figures(summary), highlight=False)
    written = console.file
    assert isinstance(written, io.StringIO)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _accuracy(summary: dict[str, Any], plain: bool) -> Table:
    by_phase: dict[str, dict[str, dict[str, Any]]] = summary.get("heldout_by_phase", {})
    overall: dict[str, float] = summary.get("heldout", {})
    phases = list(dict.fromkeys(phase for row in by_phase.values() for phase in row))
    closed_book = {
        phase for row in by_phase.values() for phase, cell in row.items() if cell.get("without_retrieval") is not None
    }
    caption = "brackets: 95 % intervals; closed book: without retrieval" if by_phase else None
    table = Table(title="held-out accuracy", title_justify="left", caption=caption, caption_justify="left")
    table.box = box.ASCII if plain else box.ROUNDED
    table.add_column("after", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    for phase in phases:
        table.add_column(phase, justify="right", no_wrap=True)
        if phase in closed_book:
            table.add_column("closed book", justify="right")
    for stage in dict.fromkeys([*overall, *by_phase]):
        cells: list[str] = []
        for phase in phases:
            measured = by_phase.get(stage, {}).get(phase, {})
            cells.append(_accuracy_cell(measured))
            if phase in closed_book:
                without = measured.get("without_retrieval")
                cells.append("-" if without is None else f"{without:.3f}")
        table.add_row(stage.replace("_", " "), f"{overall[stage]:.3f}" if stage in overall else "-", *cells)
    return table


def _accuracy_cell(measured: dict[str, Any]) -> str:
    if not measured:
        return "-"
    low, high = wilson(measured["accuracy"], measured.get("n", 0))
    return f"{measured['accuracy']:.3f} ({low:.2f}-{high:.2f})"


def _figures(summary: dict[str, Any]) -> str:
    parts = [f"{phase['name']}: {phase['steps']} steps, left by {phase['left_by']}" for phase in summary.get("phases", [])]
    if "groups" in summary:
        parts.append("groups " + ", ".join(f"{count} {ending}" for ending, count in summary["groups"].items()))
    if "tokens_per_s" in summary:
        parts.append(f"{summary['tokens_per_s']:,.0f} model tokens/s")
    if "max_age" in summary:
        parts.append(f"oldest trained token {summary['max_age']} versions old")
    if "wall_s" in summary:
        parts.append(f"wall time {summary['wall_s'] / 60:.1f} min")
    return "\n".join(parts)
