"""The registry: names, series, labels, and that everything that is logged anywhere stands in it."""

from __future__ import annotations

import re

import pytest

from actors.failures import CAUSES, EngineDrained, EngineFenced, EngineLost
from actors.health import EngineState
from actors.messages import GroupVoided
from actors.protocol import FinishReason
from medr3.observe.registry import METRICS, Kind, UnknownMetric, lookup
from medr3.run.measuring import DROP_REASONS
from trajectories.groups import State

DASHBOARDS = {"overview", "rollouts", "retrieval", "learner", "reliability"}


def test_every_metric_says_what_it_is_and_who_shows_it() -> None:
    for metric in METRICS.values():
        assert metric.help and metric.unit, metric.name
        assert metric.help.isascii(), f"{metric.name}: Ray refuses its help"
        dashboard, separator, title = metric.panel.partition(": ")
        assert separator and title, metric.name
        assert dashboard == "-" or dashboard in DASHBOARDS, metric.name
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), metric.name


def test_series_are_names_that_prometheus_takes_and_each_belongs_to_one_metric() -> None:
    series = [metric.series for metric in METRICS.values()]
    assert len(series) == len(set(series))
    assert all(re.fullmatch(r"medr3_[a-z0-9_]+[a-z0-9]", name) for name in series)


@pytest.mark.parametrize(
    ("name", "series", "labels"),
    [
        ("reward/mean", "ray_medr3_reward_mean", {}),
        ("reward/format", "ray_medr3_reward_component", {"component": "format"}),
        ("reward/my_package.rewards:exact", "ray_medr3_reward_component", {"component": "my_package.rewards:exact"}),
        (
            "reward/joint/world/joint/evidence",
            "ray_medr3_reward_by_source",
            {"phase": "joint", "source": "world/joint", "component": "evidence"},
        ),
        ("reward/dropped_samples/judge", "ray_medr3_reward_dropped_by_cause", {"cause": "judge"}),
        ("rollout/tokens_per_s/engine-0", "ray_medr3_engine_tokens_per_s", {"engine": "engine-0"}),
        ("learner/tokens_of_age_12", "ray_medr3_learner_tokens_of_age", {"age": "12"}),
        ("groups/dropped/old phase", "ray_medr3_groups_dropped_total", {"reason": "old phase"}),
        ("age/groups", "ray_medr3_age_groups_bucket", {}),
    ],
)
def test_a_name_is_a_series_with_labels(name: str, series: str, labels: dict[str, str]) -> None:
    found = lookup(name)
    assert (found.metric.exported, found.labels) == (series, labels)


@pytest.mark.parametrize("name", ["reward", "reward/", "reward/*", "reward/{component}", "finish/a/b", "nonsense/x", ""])
def test_names_without_meaning_are_unknown(name: str) -> None:
    with pytest.raises(UnknownMetric, match=re.escape("medr3/observe/registry.py")):
        lookup(name)


def test_what_the_run_counts_by_word_is_known_in_every_word() -> None:
    for name in (
        *(f"finish/{reason}" for reason in FinishReason),
        *(f"groups/failed/{cause}" for cause in CAUSES),
        *(f"groups/dropped/{reason}" for reason in DROP_REASONS),
        *(f"groups/open/{state.value}" for state in State),
        *(f"pool/engines/{state.value}" for state in EngineState),
    ):
        lookup(name)


def test_failures_keep_their_cause_on_their_way_to_the_driver() -> None:
    import pickle

    said = pickle.loads(pickle.dumps(GroupVoided("retrieval failed", "retrieval_timeout")))
    assert (str(said), said.cause) == ("retrieval failed", "retrieval_timeout")
    assert {kind("x").cause for kind in (GroupVoided, EngineLost, EngineFenced, EngineDrained)} <= set(CAUSES)
    assert pickle.loads(pickle.dumps(EngineLost("gone"))).cause == "engine_lost"
