"""Two results on the same questions: is one better, or did the other have bad luck? Paired tests, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medr3.errors import UserError
from medr3.evaluation.results import Cell, Result, read_result
from medr3.evaluation.statistics import mcnemar, paired_bootstrap

COMPARED = ("correct", "exact", "f1", "searches")
SHOWN_QUESTIONS = 5


def compare(first: Path, second: Path) -> dict[str, Any]:
    """One entry per pair of settings: those that both have, or, where each has one, those two."""
    a, b = read_result(first), read_result(second)
    return {
        "first": f"{a.target} ({a.model})",
        "second": f"{b.target} ({b.model})",
        "pairs": [_compared(*pair, seed=a.seed) for pair in _pairs(a, b, first, second)],
    }


def _pairs(a: Result, b: Result, first: Path, second: Path) -> list[tuple[Cell, Cell]]:
    if len(a.cells) == len(b.cells) == 1:
        return [(a.cells[0], b.cells[0])]
    settings = {cell.setting: cell for cell in b.cells}
    pairs = [(cell, settings[cell.setting]) for cell in a.cells if cell.setting in settings]
    if not pairs:
        raise UserError(f"{first}, {second}: share no setting: compare results of the same sweep, or of one setting each")
    return pairs


def _compared(a: Cell, b: Cell, seed: int) -> dict[str, Any]:
    of_a, of_b = _by_question(a), _by_question(b)
    common = [question for question in of_a if question in of_b]
    if not common:
        raise UserError("the two results have no question in common, so there is nothing to compare")
    measured = {}
    for name in COMPARED:
        x, y = (np.array([_mean(of[question], name) for question in common]) for of in (of_a, of_b))
        found = paired_bootstrap(x, y, seed)
        measured[name] = {
            "first": float(x.mean()), "second": float(y.mean()), "difference": found.difference._asdict(), "p": found.p,
        }  # fmt: skip
    return {
        "first": a.setting.name,
        "second": b.setting.name,
        "questions": len(common),
        "only_in_first": len(of_a) - len(common),
        "only_in_second": len(of_b) - len(common),
        "paired_bootstrap": measured,
        "mcnemar": _mcnemar([(of_a[question], of_b[question]) for question in common]),
        "lost": [q for q in common if _mean(of_a[q], "correct") > _mean(of_b[q], "correct")][:SHOWN_QUESTIONS],
        "won": [q for q in common if _mean(of_a[q], "correct") < _mean(of_b[q], "correct")][:SHOWN_QUESTIONS],
    }


def _mcnemar(pairs: Sequence[tuple[list[Any], list[Any]]]) -> dict[str, Any] | None:
    """None where questions were sampled more than once: the test knows right and wrong, and nothing between."""
    if any(len(x) > 1 or len(y) > 1 for x, y in pairs):
        return None
    only_first = sum(x[0].correct and not y[0].correct for x, y in pairs)
    only_second = sum(y[0].correct and not x[0].correct for x, y in pairs)
    return {
        "both": sum(x[0].correct and y[0].correct for x, y in pairs),
        "only_first": only_first,
        "only_second": only_second,
        "neither": sum(not x[0].correct and not y[0].correct for x, y in pairs),
        "p": mcnemar(only_first, only_second),
    }


def _by_question(cell: Cell) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in cell.records:
        found.setdefault(record.question_id, []).append(record)
    return found


def _mean(records: list[Any], name: str) -> float:
    return float(np.mean([float(getattr(record, name)) for record in records]))


def as_text(compared: dict[str, Any]) -> str:
    """For a terminal, and valid Markdown."""
    lines = [f"first:  {compared['first']}", f"second: {compared['second']}"]
    for pair in compared["pairs"]:
        lines += ["", f"{pair['questions']:,} questions; first: {pair['first']}; second: {pair['second']}", ""]
        if pair["only_in_first"] or pair["only_in_second"]:
            lines += [
                f"left out: {pair['only_in_first']:,} questions of the first alone, {pair['only_in_second']:,} of the second",
                "",
            ]
        lines += ["| | first | second | difference | 95 % interval | p |", "|---|---|---|---|---|---|"]
        for name, found in pair["paired_bootstrap"].items():
            difference = found["difference"]
            lines.append(
                f"| {name.replace('_', ' ')} | {found['first']:.3f} | {found['second']:.3f} | {difference['mean']:+.3f}"
                f" | {difference['low']:+.3f} to {difference['high']:+.3f} | {_p(found['p'])} |"
            )
        if (table := pair["mcnemar"]) is not None:
            lines.append(
                f"\nMcNemar, exact: right in the first alone {table['only_first']}, in the second alone {table['only_second']},"
                f" in both {table['both']}, in neither {table['neither']}; p = {_p(table['p'])}"
            )
    return "\n".join(lines)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
