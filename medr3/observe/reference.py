"""docs/metrics.md's tables, written from the registry and the alert rules: `python -m medr3.observe.reference`."""

from __future__ import annotations

from pathlib import Path

from medr3.observe.alerts import ALERTS
from medr3.observe.registry import METRICS, Kind, Metric

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- from here on written by medr3.observe.reference -->\n", "<!-- to here -->\n"


def reference() -> str:
    """One table per first part of the names, then the alerts."""
    rooms: dict[str, list[Metric]] = {}
    for metric in METRICS.values():
        rooms.setdefault(metric.name.partition("/")[0], []).append(metric)
    tables = [
        f"### {room}\n\n| name | in Prometheus | unit | meaning | panel |\n|---|---|---|---|---|\n"
        + "".join(map(_row, metrics))
        for room, metrics in rooms.items()
    ]
    alerts = "### Alerts\n\n| alert | severity | when | for |\n|---|---|---|---|\n" + "".join(
        f"| [{alert.name}]({alert.runbook.removeprefix('docs/')}) | {alert.severity} | {alert.summary} | {alert.lasting} |\n"
        for alert in ALERTS
    )
    return "\n" + "\n".join([*tables, alerts]) + "\n"


def _row(metric: Metric) -> str:
    kind = "" if metric.kind is Kind.GAUGE else f" ({'total' if metric.kind is Kind.COUNTER else 'histogram'})"
    panel = f"none: {metric.panel.removeprefix('-: ')}" if metric.panel.startswith("-") else metric.panel.replace(": ", " › ")
    meaning = metric.help + (f"; only with {metric.rare}" if metric.rare else "")
    labels = "".join(f" {label}" for label in metric.labels if label != "phase")
    series = f"`{metric.exported}`" + (f"{kind}, by{labels}" if labels else kind)
    return f"| `{metric.name}` | {series} | {metric.unit} | {meaning.replace('|', chr(92) + '|')} | {panel} |\n"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + reference() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
