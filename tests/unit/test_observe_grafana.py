"""Dashboards and alert rules: nothing is missing, nothing names a series that no run tells."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from medr3.errors import UserError
from medr3.observe.alerts import ALERTS
from medr3.observe.grafana import dashboards
from medr3.observe.monitoring import export_dashboards
from medr3.observe.panels import DASHBOARDS, panels, queries
from medr3.observe.reference import BEGIN, END, reference
from medr3.observe.registry import METRICS, Kind

DOCS = Path(__file__).parents[2] / "docs"
SERIES = re.compile(r"\bray_medr3_\w+")


def told() -> set[str]:
    """All series of the registry, by the names that a query may use."""
    plain = {metric.exported for metric in METRICS.values()}
    return plain | {name.replace("_bucket", part) for name in plain if name.endswith("_bucket") for part in ("_sum", "_count")}


def test_every_metric_is_on_a_panel_or_says_why_not() -> None:
    drawn = {name for _, query in queries() for name in SERIES.findall(query.expr)}
    for metric in METRICS.values():
        if metric.panel.startswith("-: "):
            assert len(metric.panel) > 12, f"{metric.name}: say why no panel draws it"
            assert metric.exported not in drawn, f"{metric.name} is on a panel, so it needs no excuse"
        else:
            assert metric.exported in drawn, metric.name


def test_no_query_names_a_series_that_nobody_tells() -> None:
    known = told()
    for _, query in queries():
        assert set(SERIES.findall(query.expr)) <= known, query.expr
    for alert in ALERTS:
        assert set(SERIES.findall(alert.expr)) <= known, alert.name
    for board in dashboards().values():
        for annotation in board["annotations"]["list"]:
            assert set(SERIES.findall(annotation["expr"])) <= known, annotation["name"]


def test_every_panel_of_a_run_obeys_the_choice_of_runs() -> None:
    for panel, query in queries():
        for series in SERIES.findall(query.expr):
            assert f'{series}{{run=~"$run"' in query.expr.replace("[10m]", ""), (panel.title, query.expr)


def test_dashboards_are_whole() -> None:
    boards = dashboards()
    assert [board["uid"] for board in boards.values()] == [f"medr3-{name}" for name in DASHBOARDS]
    assert sum(len(board["panels"]) for board in boards.values()) == len(panels())
    for board in boards.values():
        drawn = board["panels"]
        assert len({panel["id"] for panel in drawn}) == len({panel["title"] for panel in drawn}) == len(drawn) > 5
        places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in drawn]
        assert all(before < after for before, after in pairwise(places)), "panels lie over each other"
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in drawn)
        for panel in drawn:
            targets = [target["refId"] for target in panel["targets"]]
            assert panel["description"] and len(set(targets)) == len(targets) > 0
            assert {target["format"] for target in panel["targets"]} == {
                "heatmap" if panel["type"] == "heatmap" else "time_series"
            }
        assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "run"}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(board)))
        assert used <= {"datasource", "run", "__all"}
    assert boards["medr3-overview.json"]["panels"][0]["title"] == "Reward"


def test_alerts_name_what_they_speak_of_and_where_to_read_on() -> None:
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)
    headings = {line.lstrip("#").strip() for line in (DOCS / "operations.md").read_text().splitlines() if line.startswith("#")}
    for alert in ALERTS:
        assert re.fullmatch(r"Medr3[A-Z]\w+", alert.name)
        assert re.search(r"by \((run|instance)\b|\brun, ", alert.expr), f"{alert.name} loses whom it speaks of"
        assert alert.name in headings, f"docs/operations.md has no section {alert.name}"


def test_totals_are_asked_for_their_increase() -> None:
    """A total's height says nothing: a run that was resumed goes on counting where it was."""
    totals = [metric.exported for metric in METRICS.values() if metric.kind is Kind.COUNTER]
    for text in [query.expr for _, query in queries()] + [alert.expr for alert in ALERTS]:
        for total in totals:
            assert total not in text or re.search(rf"(increase|rate)\({total}\{{?[^\[]*\[", text), text


def test_the_export_is_what_prometheus_and_grafana_start_from(tmp_path: Path) -> None:
    written = export_dashboards(tmp_path / "out", ray_folder=tmp_path / "ray", prometheus="http://prometheus:9090", scrape_s=5)
    assert len(written) == 4 + len(DASHBOARDS)
    scraping = yaml.safe_load((tmp_path / "out/prometheus/prometheus.yml").read_text())
    (job,) = scraping["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [str(tmp_path / "ray" / "prom_metrics_service_discovery.json")]
    assert (tmp_path / "out/prometheus" / scraping["rule_files"][0]).is_file()
    provider = yaml.safe_load((tmp_path / "out/grafana/provisioning/dashboards/medr3.yml").read_text())["providers"][0]
    boards = sorted(path.name for path in Path(provider["options"]["path"]).iterdir())
    assert boards == sorted(dashboards())
    (source,) = yaml.safe_load((tmp_path / "out/grafana/provisioning/datasources/medr3.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    before = {path: path.read_bytes() for path in written}
    export_dashboards(tmp_path / "out", ray_folder=tmp_path / "ray", prometheus="http://prometheus:9090", scrape_s=5)
    assert {path: path.read_bytes() for path in written} == before, "an export over an earlier one changes nothing"


def test_an_export_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        export_dashboards(tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "grafana").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_dashboards(tmp_path / "out")


def test_the_reference_in_the_docs_is_current() -> None:
    page = (DOCS / "metrics.md").read_text()
    assert BEGIN in page and END in page, "docs/metrics.md has lost its marks"
    assert page.split(BEGIN)[1].split(END)[0] == reference(), "write it anew: python -m medr3.observe.reference"
