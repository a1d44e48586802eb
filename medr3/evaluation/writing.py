"""One folder per evaluation: result.json for programs, report.md for people, and its charts. It appears when it is complete."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from medr3.evaluation.results import RESULT, Cell, Result
from medr3.evaluation.settings import Setting
from medr3.observe.charts import Chart, Series, standalone

REPORT = "report.md"
MOST_ROWS = 30  # of a slice in the report; result.json has them all


def write(folder: Path, result: Result) -> None:
    """Into a folder that is there already."""
    (folder / RESULT).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    drawn = {}
    for name, chart in charts(result).items():
        if svg := standalone(chart):
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
            drawn[name] = chart.title
    (folder / REPORT).write_text(report(result, drawn), encoding="utf-8")


def finish(unfinished: Path, folder: Path) -> None:
    """From here on the evaluation is there."""
    os.replace(unfinished, folder)


def charts(result: Result) -> dict[str, Chart]:
    """By file name. Of a sweep: accuracy over each bound that was varied; of one setting: accuracy by hops, and calibration."""
    found = {}
    for name, label in (("top_k", "documents per search (top-k)"), ("max_searches", "searches allowed")):
        bounded = [cell for cell in result.cells if getattr(cell.setting, name) is not None]
        if len({getattr(cell.setting, name) for cell in bounded}) > 1:
            found[f"accuracy-by-{name.replace('_', '-')}"] = _sweep(bounded, name, label)
    cell = result.cells[-1]
    hops = [(float(value), slice_["accuracy"]) for value, slice_ in cell.metrics["by"]["hops"].items()]
    if len(hops) > 1:
        points, whiskers = [(x, each["mean"]) for x, each in hops], [(each["low"], each["high"]) for _, each in hops]
        series = Series("accuracy", points, whiskers=whiskers, dots=True)
        found["accuracy-by-hops"] = Chart("Accuracy", "with 95 % intervals", [series], top=1.0, x_name="hops")
    if calibration := cell.metrics["calibration"]:
        bins = [(each["confidence"], each["accuracy"]) for each in calibration["bins"]]
        found["calibration"] = Chart(
            f"Calibration, ECE {calibration['ece']:.3f}", "share of right answers", [
                Series("as sure as right", [(0.0, 0.0), (1.0, 1.0)], colour=1, faint=True),
                Series("answers", bins, dots=True),
            ], top=1.0, x_name="confidence",
        )  # fmt: skip
    return found


def _sweep(cells: list[Cell], name: str, label: str) -> Chart:
    """One curve per value of the other bound."""
    other = "max_searches" if name == "top_k" else "top_k"
    curves: dict[Any, list[tuple[float, dict[str, float]]]] = {}
    for cell in cells:
        curves.setdefault(getattr(cell.setting, other), []).append(
            (float(getattr(cell.setting, name)), cell.metrics["accuracy"])
        )
    shown = other.replace("_", " ")
    series = [
        Series(
            f"{shown} {value}" if value is not None else "accuracy",
            [(x, accuracy["mean"]) for x, accuracy in sorted(curve, key=lambda point: point[0])],
            colour=i % 3,
            whiskers=[(accuracy["low"], accuracy["high"]) for _, accuracy in sorted(curve, key=lambda point: point[0])],
            dots=True,
        )
        for i, (value, curve) in enumerate(curves.items())
    ]
    return Chart("Accuracy", "with 95 % intervals", series, top=1.0, x_name=label)


def report(result: Result, drawn: dict[str, str]) -> str:
    """Markdown."""
    lines = [
        f"# {result.target}",
        "",
        f"{result.model}, on {', '.join(result.datasets)}: {len(result.questions):,} questions, seed {result.seed}, evaluated on"
        f" {time.strftime('%Y-%m-%d %H:%M', time.localtime(result.started_at))} in {result.wall_s:.0f} s."
        + (f" Index {result.index_hash[:12]}." if result.index_hash else ""),
        "",
        "Brackets are 95 % bootstrap intervals over questions.",
        "",
        *_table(
            ["setting", "accuracy", "mean of sources", "exact match", "F1", "searches", "model tokens", "ECE", "Brier"],
            [_row(cell.setting, cell.metrics) for cell in result.cells],
        ),
    ]
    for name, title in drawn.items():
        lines += ["", f"![{title}]({name}.svg)"]
    for cell in result.cells:
        lines += ["", f"## {cell.setting.name}", *_details(cell.metrics)]
    return "\n".join(lines) + "\n"


def _row(setting: Setting, metrics: dict[str, Any]) -> list[str]:
    calibration = metrics["calibration"]
    return [
        setting.name, f"**{_share(metrics['accuracy'])}**", f"{metrics['accuracy_mean_of_sources']:.3f}",
        _share(metrics["exact_match"]), _share(metrics["f1"]), f"{metrics['searches']['mean']:.2f}",
        f"{metrics['tokens_per_answer']['model']:.0f}",
        f"{calibration['ece']:.3f}" if calibration else "–", f"{calibration['brier']:.3f}" if calibration else "–",
    ]  # fmt: skip


def _details(metrics: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, slices in metrics["by"].items():
        if not slices:
            continue
        shown = list(slices.items())[:MOST_ROWS]
        more = f" (of {len(slices)})" if len(slices) > MOST_ROWS else ""
        lines += ["", *_table([name + more, "questions", "accuracy"], [
            [_cell(value), f"{each['n']:,}", _share(each["accuracy"])] for value, each in shown
        ])]  # fmt: skip
    lines += ["", f"Ends: {_counts(metrics['finishes'])}."]
    evidence, disputes = metrics["evidence"], metrics["disputes"]
    if evidence["cited"]:
        lines.append(
            f"\nCited evidence by level: {_counts(evidence['cited'])}; mean {evidence['cited_mean_level']:.2f},"
            f" {evidence['cited_strong']:.1%} of levels I and II. {evidence['episodes_citing']:.1%} of episodes cite a document."
        )
    if disputes and disputes["decided"]:
        low, high = disputes["interval"]
        lines.append(
            f"\nOf {disputes['met']:,} contradictions between documents that were found, {disputes['decided']:,} were decided:"
            f" {disputes['share_on_better']:.1%} ({low:.1%} to {high:.1%}) rested on the better document alone."
        )
    return lines


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _share(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f}–{interval['high']:.3f})"


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counted.items())


def _cell(value: str) -> str:
    """A file's words must not end a cell or begin a tag."""
    return value.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
