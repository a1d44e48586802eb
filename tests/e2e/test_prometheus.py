"""A real Prometheus scrapes a real run on a real Ray: every panel and every alert has data. And every alert fires when it should."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from medr3.observe.alerts import ALERTS, Alert, rules
from medr3.observe.grafana import dashboards
from medr3.observe.metrics_file import read_metrics
from medr3.observe.monitoring import ALERTS_FILE
from medr3.observe.panels import queries
from medr3.observe.registry import METRICS, lookup
from medr3.run.control import Control, write_control
from tests.e2e import small_run
from tests.e2e.prometheus_server import SELECTOR, Prometheus, prometheus, tool
from tests.e2e.ray_head import one_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# A phase is left when Prometheus has seen it: three steps may take less time than a scrape. The last one ends by itself.
UNTIL_SEEN = ("reasoning", "retrieval")
LENGTHS = [
    *(f"curriculum.phases.{phase}.{setting}=200" for phase in UNTIL_SEEN for setting in ("min_steps", "max_steps")),
    "curriculum.phases.joint.max_steps=3",
]
RUN = "watched"
# What is told every few seconds as well: the step's own figure may have been overtaken before Ray passed it on.
OF_THE_MOMENT = (
    "groups/",
    "pool/",
    "run/",
    "curriculum/",
    "weights/acks",
    "weights/refused",
    "rollout/engines",
    "rollout/kv_use",
)


@dataclass(frozen=True)
class Watched:
    """A run that has ended, and who watched it."""

    folder: Path
    prometheus: Prometheus
    start: float
    end: float


@pytest.fixture(scope="module")
def watched(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Ray tells its agent every second instead of every ten, so that the steps of a small run can be told apart."""
    folder = tmp_path_factory.mktemp("watched")
    with one_node(cpus=8, RAY_metrics_report_interval_ms="1000") as head:
        export = [sys.executable, "-m", "medr3.cli", "dashboard", "export", str(folder / "export"), "--scrape-s=1"]
        subprocess.run([*export, f"--ray-folder={head.folder}"], cwd=small_run.REPOSITORY, check=True, timeout=60)
        with prometheus(folder / "export" / "prometheus" / "prometheus.yml", folder / "data") as server:
            server.until(lambda: "up" in server.targets().values(), 60, "Ray's own list of nodes is scraped")
            start = time.time()
            small_run.begin_from(finished, folder / RUN)
            overrides = ["rollout.max_staleness=1", "tracking.tensorboard=true", *LENGTHS]
            process = small_run.start(folder / RUN, *overrides, environment=head.environment)
            try:
                for phase in UNTIL_SEEN:
                    seen = partial(bands_seen, server, start, phase)
                    small_run.wait_until(seen, process, folder / RUN, 300)
                    write_control(folder / RUN, Control("advance", time.time()))
                assert process.wait(500) == 0, small_run.output(folder / RUN)[-3000:]
            finally:
                small_run.end(process)
            assert "is given up" not in small_run.output(folder / RUN), "an export failed"
            ended = f'ray_medr3_run_training{{run="{RUN}"}} == 0'
            server.until(lambda: server.series(ended, start, time.time()), 60, "the run's last word is read")
            yield Watched(folder / RUN, server, start, time.time())


def bands(server: Prometheus, start: float, end: float) -> dict[str, list[Any]]:
    """What the overview draws as phases: name -> [time, value] pairs."""
    (annotation,) = [each for each in dashboards()["medr3-overview.json"]["annotations"]["list"] if each["name"] == "Phases"]
    found = server.series(annotation["expr"].replace("$run", RUN), start, end)
    return {band["metric"]["phase"]: band["values"] for band in found}


def bands_seen(server: Prometheus, start: float, phase: str) -> bool:
    return phase in bands(server, start, time.time())


def test_every_query_of_every_panel_has_data(watched: Watched) -> None:
    empty = [
        f"{panel.dashboard}: {panel.title}: {query.expr}"
        for panel, query in queries()
        if not query.rare and not watched.prometheus.series(query.expr.replace("$run", RUN), watched.start, watched.end)
    ]
    assert not empty, "\n".join(empty)


def test_the_queries_that_are_excused_are_correct_all_the_same(watched: Watched) -> None:
    for _, query in queries():
        if query.rare:
            watched.prometheus.series(query.expr.replace("$run", RUN), watched.start, watched.end)
    for board in dashboards().values():
        for annotation in board["annotations"]["list"]:
            watched.prometheus.series(annotation["expr"].replace("$run", RUN), watched.start, watched.end)


def test_phases_are_bands_in_their_order(watched: Watched) -> None:
    found = bands(watched.prometheus, watched.start, watched.end)
    began = {phase: values[0][0] for phase, values in found.items()}
    assert sorted(began, key=lambda phase: began[phase]) == ["reasoning", "retrieval", "joint"]
    assert found["reasoning"][-1][0] < began["joint"], "a phase that was left leaves no curve behind"


def test_every_figure_of_the_run_reached_prometheus_with_its_labels(watched: Watched) -> None:
    """The last step's figures as metrics.jsonl has them."""
    row = {name: value for name, value in read_metrics(watched.folder / "metrics.jsonl")[-1].items() if value is not None}
    phase = row.pop("phase")
    del row["step"], row["time"]
    missing = []
    for name, value in row.items():
        metric, labels = lookup(name)
        wanted = {"run": RUN, "phase": phase, **labels}
        selector = ", ".join(f'{label}="{said}"' for label, said in wanted.items())
        found = watched.prometheus.series(f"{metric.exported}{{{selector}}}", watched.start, watched.end)
        seen = {float(said) for one in found for _, said in one["values"]}
        of_the_moment = name.startswith(OF_THE_MOMENT) and not labels.get("engine")
        if not found or (not of_the_moment and not any(said == pytest.approx(value, rel=1e-6) for said in seen)):
            missing.append(f"{name} = {value}: {sorted(seen)[-3:]}")
    assert not missing, "\n".join(missing)
    assert any((watched.folder / "tensorboard").iterdir())


def test_labels_are_those_of_the_registry_and_hold_nothing_else(watched: Watched) -> None:
    ours = {"run", "phase", *(label for metric in METRICS.values() for label in metric.labels)}
    of_ray = {
        "__name__", "instance", "job", "le", "Component", "NodeAddress", "SessionName", "Version", "JobId", "NodeId", "WorkerId",
        "RayNodeType", "otel_scope_name",
    }  # fmt: skip
    found = watched.prometheus.get("series", **{"match[]": '{__name__=~"ray_medr3_.+"}'}, start=watched.start, end=watched.end)
    assert len(found) > 150
    assert {label for series in found for label in series} <= ours | of_ray
    assert len(found) < 2000, "a run of three phases is a few hundred series"


def test_alert_rules_are_evaluated_on_series_that_exist_and_none_fires(watched: Watched) -> None:
    for group in watched.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
    absent = [
        f"{alert.name}: {selector}"
        for alert in ALERTS
        for selector in SELECTOR.findall(alert.expr)
        if not watched.prometheus.series(selector, watched.start, watched.end)
    ]
    assert not absent, "\n".join(absent)
    fired = watched.prometheus.series('ALERTS{alertname=~"Medr3.+", alertstate="firing"}', watched.start, watched.end)
    assert not [one["metric"]["alertname"] for one in fired]


def test_a_run_that_ended_well_says_so_before_it_goes(watched: Watched) -> None:
    gone = next(alert for alert in ALERTS if alert.name == "Medr3DriverGone")
    said = watched.prometheus.series(f'ray_medr3_run_training{{run="{RUN}"}}', watched.start, watched.end)
    assert min(float(value) for one in said for _, value in one["values"]) == 0
    assert not watched.prometheus.get("query", query=gone.expr)["result"]


# Every alert, on series that were made up: silent where all is well, and loud where it should be.

MINUTES = 180
HEALTHY = {
    "ray_medr3_run_training": "1",
    "ray_medr3_run_step_time": "0+60",  # a step a minute
    "ray_medr3_time_step": "60",
    'ray_medr3_pool_engines{state="healthy"}': "4",
    'ray_medr3_pool_engines{state="stale"}': "0",
    'ray_medr3_pool_engines{state="suspect"}': "0",
    "ray_medr3_pool_restarts_total": "0",
    "ray_medr3_weights_refused_total": "0",
    "ray_medr3_learner_mismatch_warned": "0",
    'ray_medr3_groups_failed_total{cause="retrieval_timeout"}': "0+1",
    'ray_medr3_groups_failed_total{cause="engine_lost"}': "0",
    "ray_medr3_groups_admitted_total": "0+64",
    "ray_medr3_groups_trained_total": "0+64",
    'ray_medr3_groups_dropped_total{reason="stale"}': "0+1",
    'ray_medr3_retrieval_latency_ms_bucket{le="100"}': "0+1000",
    'ray_medr3_retrieval_latency_ms_bucket{le="10000"}': "0+1000",
    'ray_medr3_retrieval_latency_ms_bucket{le="+Inf"}': "0+1000",
    "ray_medr3_curriculum_health": "0",
    "ray_medr3_curriculum_rollbacks": "0",
    "ray_medr3_learner_skipped_updates": "0",
    "ray_medr3_run_disk_free": "0.4",
    "ray_node_mem_used": "50",
    "ray_node_mem_total": "100",
}
AT = 120  # minutes: when a fault begins
FAULTS: dict[str, dict[str, str]] = {
    "Medr3NoProgress": {"ray_medr3_run_step_time": f"0+60x{AT} {AT * 60}+0"},
    "Medr3DriverGone": {name: f"{value}x{AT} stale" for name, value in HEALTHY.items() if "medr3" in name and "+" not in value},
    "Medr3NoEngine": {'ray_medr3_pool_engines{state="healthy"}': f"4x{AT} 0"},
    "Medr3StaleEngine": {'ray_medr3_pool_engines{state="stale"}': f"0x{AT} 1"},
    "Medr3EngineRestarts": {"ray_medr3_pool_restarts_total": f"0x{AT} 1 2 3 4 4"},
    "Medr3WeightsRefused": {"ray_medr3_weights_refused_total": f"0x{AT} 1"},
    "Medr3Mismatch": {"ray_medr3_learner_mismatch_warned": f"0x{AT} 1 0"},
    "Medr3RetrievalFailing": {'ray_medr3_groups_failed_total{cause="retrieval_timeout"}': f"0+1x{AT} {AT}+5"},
    "Medr3RetrievalSlow": {'ray_medr3_retrieval_latency_ms_bucket{le="100"}': f"0+1000x{AT} {AT * 1000}+900"},
    "Medr3GroupsFailing": {'ray_medr3_groups_failed_total{cause="engine_lost"}': f"0x{AT} 0+10"},
    "Medr3GroupsTooOld": {'ray_medr3_groups_dropped_total{reason="stale"}': f"0+1x{AT} {AT}+20"},
    "Medr3CollapseThreatens": {"ray_medr3_curriculum_health": f"0x{AT} 1"},
    "Medr3RolledBack": {"ray_medr3_curriculum_rollbacks": f"0x{AT} 1"},
    "Medr3UpdatesSkipped": {"ray_medr3_learner_skipped_updates": f"0x{AT} 2 0"},
    "Medr3DiskFilling": {"ray_medr3_run_disk_free": f"0.4x{AT} 0.39-0.003"},
    "Medr3NodeMemory": {"ray_node_mem_used": f"50x{AT} 95"},
}


# Minutes after the fault began, where it takes longer than a quarter of an hour to be sure of it.
HEARD_AFTER = {
    "Medr3NoProgress": 35, "Medr3RetrievalFailing": 30, "Medr3GroupsFailing": 40, "Medr3GroupsTooOld": 40, "Medr3DiskFilling": 40,
}  # fmt: skip


def _series(overrides: dict[str, str]) -> list[dict[str, str]]:
    """Under the labels that the real ones have; every stretch of values is repeated to the end."""
    made = []
    for name, values in {**HEALTHY, **overrides}.items():
        labels = 'instance="127.0.0.1:1"' if name.startswith("ray_node") else 'run="r", phase="joint"'
        selector = name.replace("{", f"{{{labels}, ") if "{" in name else f"{name}{{{labels}}}"
        *before, last = values.split()
        lasting = last if last == "stale" else f"{last}x{MINUTES}"
        made.append({"series": selector, "values": " ".join([*before, lasting])})
    return made


def _expected(alert: Alert, *, fires: bool, at: int) -> dict[str, Any]:
    who = {"instance": "127.0.0.1:1"} if alert.name == "Medr3NodeMemory" else {"run": "r"}
    who |= {"state": "stale"} if alert.name == "Medr3StaleEngine" else {}
    annotations = {"summary": f"{who.get('run') or who['instance']}: {alert.summary}", "runbook": alert.runbook}
    found = [{"exp_labels": {"severity": alert.severity, **who}, "exp_annotations": annotations}] if fires else []
    return {"eval_time": f"{at}m", "alertname": alert.name, "exp_alerts": found}


def _promtool(tmp_path: Path, overrides: dict[str, str], expected: list[dict[str, Any]]) -> None:
    (tmp_path / ALERTS_FILE).write_text(yaml.safe_dump(rules()))
    test = {"interval": "1m", "input_series": _series(overrides), "alert_rule_test": expected}
    content = {"rule_files": [ALERTS_FILE], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yml").write_text(json.dumps(content))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_where_all_is_well_nobody_is_woken(tmp_path: Path) -> None:
    _promtool(tmp_path, {}, [_expected(alert, fires=False, at=at) for alert in ALERTS for at in (10, AT + 30)])


@pytest.mark.parametrize("alert", ALERTS, ids=[alert.name for alert in ALERTS])
def test_an_alert_fires_on_its_fault_alone(tmp_path: Path, alert: Alert) -> None:
    heard = AT + HEARD_AFTER.get(alert.name, 14)
    after = [_expected(each, fires=each is alert, at=heard) for each in ALERTS]
    before = [_expected(each, fires=False, at=AT - 1) for each in ALERTS]
    _promtool(tmp_path, FAULTS[alert.name], before + after)


def test_promtool_finds_nothing_wrong_with_the_files(tmp_path: Path) -> None:
    from medr3.observe.monitoring import export_dashboards

    export_dashboards(tmp_path)
    done = subprocess.run(
        [tool("promtool"), "check", "config", tmp_path / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and f"{len(ALERTS)} rules found" in done.stdout, done.stdout + done.stderr
