"""Grafana dashboards as JSON, made from `panels`; nobody edits them by hand, because the next export would undo it."""

from __future__ import annotations

from typing import Any

from medr3.observe.panels import DASHBOARDS, Panel, Query, panels

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION = 39  # of Grafana 10 and later
_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3  # of a grid of 24 columns: three panels beside each other
# Units of the registry in Grafana's words; the others are written behind the figure as they are.
_UNITS = {
    "share": "percentunit", "percent": "percent", "s": "s", "ms": "ms", "tokens/s": "short", "tokens": "short", "MiB": "mbytes",
    "bytes": "bytes", "reward": "none", "nats": "none", "norm": "none", "ratio": "none",
    "yes = 1": "none", "0 to 2": "none", "position": "none", "firing = 1": "none", "1/step": "none", "reward²": "none",
}  # fmt: skip
_ANNOTATIONS = (
    # A phase is a band: Grafana joins neighbouring points of one series to a region.
    ("Phases", 'max by (run, phase) (ray_medr3_run_training{run=~"$run"})', "{{phase}}", "{{run}}", "rgba(87, 148, 242, 0.6)"),
    (
        "Roll-backs",
        'max by (run) (ray_medr3_curriculum_rollbacks{run=~"$run"}) > max by (run) (ray_medr3_curriculum_rollbacks{run=~"$run"} offset 2m)',
        "rolled back", "{{run}}", "rgba(242, 73, 92, 0.9)",
    ),
    ("Alerts", 'ALERTS{alertname=~"Medr3.+", alertstate="firing"}', "{{alertname}}", "{{run}}", "rgba(255, 152, 48, 0.9)"),
)  # fmt: skip


def dashboards() -> dict[str, dict[str, Any]]:
    """File name → dashboard."""
    drawn = panels()
    return {
        f"medr3-{name}.json": _dashboard(name, about, [panel for panel in drawn if panel.dashboard == name])
        for name, about in DASHBOARDS.items()
    }


def _dashboard(name: str, about: str, drawn: list[Panel]) -> dict[str, Any]:
    return {
        "uid": f"medr3-{name}",
        "title": f"medr3 {name}",
        "description": about,
        "tags": ["medr3"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "graphTooltip": 1,  # one cross-hair for all panels
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_annotation(*each) for each in _ANNOTATIONS]},
        "links": [
            {
                "type": "dashboards",
                "title": "medr3",
                "tags": ["medr3"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": [_panel(number, panel) for number, panel in enumerate(drawn)],
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0},
        {
            "name": "run", "label": "Run", "type": "query", "datasource": _DATASOURCE, "refresh": 2, "sort": 1, "multi": True,
            "includeAll": True, "allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]},
            "definition": "label_values(ray_medr3_run_step, run)",
            "query": {"query": "label_values(ray_medr3_run_step, run)", "refId": "runs"},
        },
    ]  # fmt: skip


def _annotation(name: str, expr: str, title: str, text: str, colour: str) -> dict[str, Any]:
    return {
        "name": name, "datasource": _DATASOURCE, "enable": True, "expr": expr, "step": "10s", "titleFormat": title,
        "textFormat": text, "iconColor": colour, "useValueForTime": False,
    }  # fmt: skip


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    place = {"x": number % _PER_ROW * _WIDTH, "y": number // _PER_ROW * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
    common = {
        "id": number + 1,
        "title": panel.title,
        "description": panel.help,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "targets": [_target(chr(ord("A") + index), query) for index, query in enumerate(panel.queries)],
    }
    if panel.queries[0].heatmap:
        return common | {
            "type": "heatmap",
            "options": {"calculate": False, "cellGap": 1, "color": {"mode": "scheme", "scheme": "Blues", "steps": 32},
                        "yAxis": {"unit": _unit(panel.unit)}, "tooltip": {"mode": "single", "yHistogram": True}},
        }  # fmt: skip
    custom = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "auto", "spanNulls": 60_000}
    return common | {
        "type": "timeseries",
        "fieldConfig": {"defaults": {"unit": _unit(panel.unit), "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def _target(name: str, query: Query) -> dict[str, Any]:
    return {
        "refId": name, "datasource": _DATASOURCE, "expr": query.expr, "legendFormat": query.legend, "range": True,
        "format": "heatmap" if query.heatmap else "time_series",
    }  # fmt: skip


def _unit(unit: str) -> str:
    return _UNITS.get(unit, f"suffix: {unit}")
