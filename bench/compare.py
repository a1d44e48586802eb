"""Two results side by side, and both beside a budget: whether something got slower than was agreed.

A file holds one result, as `medr3 bench NAME --json` prints it last, or several, as `medr3 bench all` writes them. Ratios alone are
compared: seconds of two machines, or of one on two days, say nothing about the code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bench.harness import Result

BUDGETS = Path(__file__).with_name("budgets.yaml")
ALLOWED = 0.10  # worse than the budget by more than this fails: what a two-core machine with other programs scatters by anyway
FACTS = ("cpu", "cores", "device", "torch", "vllm", "ray", "python", "commit")


class ResultRefused(Exception):
    """A file that is no result, or a budget that names none; one line."""


class Line(NamedTuple):
    """One ratio of both files; `factor` is how many times better the second is, whichever way is better."""

    name: str
    first: float | None
    second: float
    factor: float | None
    budget: float | None
    failed: bool


def read_results(path: Path) -> dict[str, Result]:
    """By benchmark. Whatever libraries printed before the last line is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultRefused(f"{path}: cannot be read ({error}): name a file that medr3 bench NAME --json was sent to") from None
    try:
        found = json.loads(lines[-1])
        results = found["benchmarks"] if "benchmarks" in found else {found["benchmark"]: found}
        for each in results.values():
            _ = [(row["name"], float(row["value"]), bool(row["at_most"])) for row in each["ratios"]], each["machine"]["cpu"]
    except (IndexError, ValueError, KeyError, TypeError, AttributeError):
        raise ResultRefused(f"{path}: its last line is no benchmark's result: send medr3 bench NAME --json there") from None
    return dict(results)


def read_budgets(path: Path = BUDGETS) -> dict[str, dict[str, float]]:
    """By benchmark and ratio, what is expected of it."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {str(name): {str(ratio): float(value) for ratio, value in rows.items()} for name, rows in found.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ResultRefused(f"{path}: is no budget ({reason}): write benchmark: {{ratio: number}} for each") from None


def compare(first: dict[str, Result], second: dict[str, Result], budgets: dict[str, dict[str, float]]) -> list[Line]:
    """Every ratio of the second, beside the first's where it has it. One in the budget that the second did not measure is an error.

    Example: a goal of at most is better when it is smaller.
        >>> def measured(value):
        ...     return {"weights": {"ratios": [{"name": "to copy", "value": value, "at_most": True}]}}
        >>> compare(measured(2.0), measured(4.0), {"weights": {"to copy": 3.0}})
        [Line(name='weights: to copy', first=2.0, second=4.0, factor=0.5, budget=3.0, failed=True)]
    """
    lines = []
    for benchmark, result in second.items():
        before = {row["name"]: float(row["value"]) for row in first.get(benchmark, {"ratios": []})["ratios"]}
        budget = budgets.get(benchmark, {})
        missing = budget.keys() - {row["name"] for row in result["ratios"]}
        if missing and not result.get("short"):  # short settings leave some out
            names = ", ".join(sorted(missing))
            raise ResultRefused(f"budget of {benchmark}: no ratio {names} was measured: rename it there as in the benchmark")
        for row in result["ratios"]:
            name, value, at_most = row["name"], float(row["value"]), bool(row["at_most"])
            expected = budget.get(name)
            failed = expected is not None and _better(expected, value, at_most) < 1 - ALLOWED
            factor = _better(before[name], value, at_most) if name in before else None
            lines.append(Line(f"{benchmark}: {name}", before.get(name), value, factor, expected, failed))
    return lines


def _better(expected: float, value: float, at_most: bool) -> float:
    """How many times better the value is than what it is compared with."""
    over, under = (expected, value) if at_most else (value, expected)
    return over / under if under else float("inf")


def comparison_table(first: dict[str, Result], second: dict[str, Result], lines: list[Line]) -> str:
    """For a person: both machines where they differ, then a line for each ratio."""
    said = []
    for fact in FACTS:
        one, two = (_fact(results, fact) for results in (first, second))
        said.append(f"  {fact:<8} {one}" if one == two else f"  {fact:<8} {one}  |  {two}   DIFFERENT")
    said.append(f"  {'':<64} {'first':>9} {'second':>9} {'better':>8} {'budget':>8}")
    for line in lines:
        word = "WORSE THAN ITS BUDGET" if line.failed else ""
        cells = f"{_cell(line.first):>9} {_cell(line.second):>9} {_cell(line.factor, 'x'):>8} {_cell(line.budget):>8}"
        said.append(f"  {line.name:<64} {cells} {word}".rstrip())
    return "\n".join(said)


def _fact(results: dict[str, Result], fact: str) -> str:
    values: dict[str, Any] = {str(result["machine"].get(fact, "unknown")): None for result in results.values()}
    return ", ".join(values)


def _cell(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.3g}{unit}"
