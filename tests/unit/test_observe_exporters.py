"""Where metrics go: which curves stand in Prometheus, what TensorBoard's files hold, and what becomes of an export that fails."""

from __future__ import annotations

import math
import re
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from actors.messages import GroupSummary
from medr3.observe import prometheus
from medr3.observe.config import TrackingConfig
from medr3.observe.metrics_file import read_metrics
from medr3.observe.prometheus import Series
from medr3.observe.registry import METRICS, Kind, UnknownMetric, lookup
from medr3.observe.tracker import Tracker
from medr3.run.accounts import Accounts, IdleClock
from medr3.run.journal import FinishedGroup
from medr3.run.measuring import disk_free, engine_metrics, observed, search_metrics
from trajectories.publication import WeightAck
from trajectories.schema import WeightVersion

QUIET = TrackingConfig(wandb="disabled", progress=False)
V = WeightVersion(1, 3)


def standing(series: Series) -> dict[str, float]:
    """By a short name: series{label,…}."""
    return {
        f"{metric.series}{{{','.join(value for name, value in labels if name != 'run')}}}": value
        for (metric, labels), value in series.standing().items()
    }


def test_a_phase_that_was_left_leaves_no_curve_behind() -> None:
    series = Series("r")
    series.step("reasoning", {"reward/mean": 0.5, "heldout/accuracy": 0.9, "reward/reasoning/world/a/format": 1.0})
    series.now("reasoning", {"run/step": 1})
    assert standing(series) == {
        "medr3_reward_mean{reasoning}": 0.5,
        "medr3_heldout_accuracy{reasoning}": 0.9,
        "medr3_reward_by_source{reasoning,world/a,format}": 1.0,
        "medr3_run_step{reasoning}": 1,
    }
    series.now("joint", {"run/step": 1})
    assert standing(series) == {"medr3_run_step{joint}": 1}


def test_a_figure_that_a_step_does_not_have_is_a_gap_and_a_score_lasts() -> None:
    series = Series("r")
    series.step("joint", {"learner/mismatch_mean": 1e-6, "heldout/accuracy": 0.9, "rollout/tokens_per_s/engine-1": 10.0})
    series.step("joint", {"learner/mismatch_mean": math.nan, "reward/mean": math.inf})
    assert standing(series) == {"medr3_heldout_accuracy{joint}": 0.9}


def test_of_two_that_speak_of_one_thing_the_later_is_believed() -> None:
    series = Series("r")
    series.now("joint", {"groups/admitted": 4, "run/step": 1})
    series.step("joint", {"groups/admitted": 8})
    assert standing(series) == {"medr3_groups_admitted{joint}": 8, "medr3_run_step{joint}": 1}
    series.now("joint", {"groups/admitted": 9})
    assert standing(series) == {"medr3_groups_admitted{joint}": 9}


def test_ray_takes_every_metric_and_every_name(tmp_path: Path) -> None:
    """Its objects are real here, though no Ray hears them."""
    export = prometheus.PrometheusExport("r")
    names = {re.sub(r"\{\w+\}", "größe", metric.name): metric for metric in METRICS.values()}
    gauges = {name: 1.0 for name, metric in names.items() if metric.kind is not Kind.HISTOGRAM}
    export.log(1, "Übung", gauges, {name: [0.0, 2.0] for name in names.keys() - gauges.keys()})
    export.now("Übung", {"run/step": 1.0})
    assert len(export._instruments) == len(METRICS)


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_SERIES", 3)
    series = Series("r")
    for step in range(10):
        series.step("joint", {f"reward/component_{step}": 1.0, "reward/component_0": 0.5})
    assert set(standing(series)) == {"medr3_reward_component{joint,component_0}"}


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans(), st.floats(0, 1)), max_size=20))
def test_whatever_is_told_in_whatever_order_only_the_last_phase_stands(told: list[tuple[str, bool, float]]) -> None:
    series = Series("r")
    for phase, is_step, value in told:
        (series.step if is_step else series.now)(phase, {"reward/mean" if is_step else "run/step": value})
    assert {dict(labels)["phase"] for _, labels in series.standing()} <= {told[-1][0] if told else ""}


def events(folder: Path) -> list[Any]:
    """TensorBoard's files: length, checksum, event, checksum."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def test_tensorboard_holds_every_figure_and_hides_steps_that_are_made_again(tmp_path: Path) -> None:
    config = QUIET.model_copy(update={"tensorboard": True})
    for resume_step, steps in ((None, (1, 2)), (1, (2,))):
        tracker = Tracker(tmp_path, config, resume_step=resume_step)
        for step in steps:
            tracker.log(
                step, "joint", {"reward/mean": 0.25 * step, "learner/grad_norm": math.nan}, {"age/groups": [0.0, 2.0, 20.0]}
            )
        tracker.close()
    written = events(tmp_path)
    values = [(event.step, value) for event in written for value in event.summary.value]
    scalars = [(step, value.tag, value.simple_value) for step, value in values if value.WhichOneof("value") == "simple_value"]
    assert sorted(scalars) == [(1, "reward/mean", 0.25), (2, "reward/mean", 0.5), (2, "reward/mean", 0.5)]
    assert [event.step for event in written if event.HasField("session_log")] == [2], "from step 2 on the first file is void"
    ages = next(value.histo for _, value in values if value.tag == "age/groups")
    assert (ages.num, ages.min, ages.max) == (3, 0.0, 20.0)


def test_an_export_that_fails_is_given_up_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", ModuleType("mcp"))  # a library whose users W&B has something to sell to
    tracker = Tracker(tmp_path, TrackingConfig(wandb="offline", progress=False), name="r")
    import wandb

    tracker.log(1, "joint", {"reward/mean": 0.5})
    assert wandb.run is not None
    wandb.run.finish()
    tracker.log(2, "joint", {"reward/mean": 0.6})
    tracker.log(3, "joint", {"reward/mean": 0.7})
    tracker.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    said = capsys.readouterr().err
    assert said.count("medr3: warning: WandbExport is given up, metrics.jsonl goes on") == 1 and said.count("\n") == 1


@pytest.mark.parametrize("wrong", [({"rewrad/mean": 1.0}, {}), ({}, {"age/grups": [1.0]})])
def test_a_name_that_is_not_registered_is_an_error_before_anything_is_written(
    tmp_path: Path, wrong: tuple[dict[str, float], dict[str, list[float]]]
) -> None:
    tracker = Tracker(tmp_path, QUIET)
    with pytest.raises(UnknownMetric, match="did you mean"):
        tracker.log(1, "joint", {"reward/mean": 1.0, **wrong[0]}, wrong[1])
    with pytest.raises(UnknownMetric):
        tracker.now("joint", {"nonsense": 1.0})
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_no_key_reaches_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B gets the configuration, which names variables and holds no value of one."""
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-value")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    settings = {"rollout": {"judge": {"api_key_env": "JUDGE_KEY"}}}
    tracker = Tracker(tmp_path, TrackingConfig(wandb="offline", tensorboard=True, progress=False), settings=settings)
    tracker.log(1, "joint", {"reward/mean": 0.5})
    tracker.close()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"reward/mean" in written
    assert b"sk-very-secret-value" not in written and b"0123456789abcdef0123" not in written


# What a step measured.


def group(engine: str, **others: Any) -> FinishedGroup:
    summary = GroupSummary("g", 0, engine, V, V, [1.0, 0.0], [True, False], model_tokens=100, **others)
    return FinishedGroup(summary, "world/joint", None, None)  # type: ignore[arg-type]


def test_searches_and_engines_are_told_from_the_groups_that_were_trained() -> None:
    groups = [
        group("engine-0.0", search_ms=[1.0, 2.0, 3.0], searches_cached=2, kv_use=0.5, preemptions=1),
        group("engine-0.1", search_ms=[100.0], searches_empty=1, kv_use=0.2),  # the engine that took its place
        group("engine-1.0", kv_use=0.1),
    ]
    found = search_metrics(groups, 2.0)
    assert found == {
        "retrieval/p50_ms": 2.5, "retrieval/p99_ms": pytest.approx(97.09), "retrieval/searches_per_s": 2.0, "retrieval/hit_rate": 0.5,
        "retrieval/degraded": 0.0, "retrieval/empty": 0.25,
    }  # fmt: skip
    assert search_metrics(groups[2:], 2.0) == {}
    engines = engine_metrics(groups, 2.0)
    assert engines["rollout/tokens_per_s/engine-0"] == 100.0 and engines["rollout/tokens_per_s/engine-1"] == 50.0
    assert engines["rollout/kv_use/engine-0"] == 0.5
    seen = observed(groups, [0, 1, 1])
    assert seen == {"age/groups": [0.0, 1.0, 1.0], "retrieval/latency_ms": [1.0, 2.0, 3.0, 100.0]}
    for name in (*found, *engines, *seen):
        lookup(name)


def test_acknowledgements_are_those_of_the_slowest_engine_and_of_one_step() -> None:
    accounts = Accounts()
    accounts.ack(WeightAck("engine-0.0", V, True, "c", 1e-6, seconds={"pause": 0.1, "total": 0.5}))
    accounts.ack(WeightAck("engine-1.0", V, True, "c", 3e-6, seconds={"pause": 0.2, "total": 0.4}))
    accounts.ack(WeightAck("engine-2.0", V, False, "", math.nan, "file is gone"))
    assert accounts.weights() == {"weights/canary_difference": 3e-6, "weights/sync_s": 0.5, "weights/pause_s": 0.2}
    assert (accounts.acks, accounts.refused) == (2, 1)
    assert accounts.weights() == {}


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "take"]), st.integers(0, 5)), max_size=40))
def test_idle_seconds_are_those_in_which_nobody_works(moves: list[tuple[str, int]]) -> None:
    now, working, idle, taken = 0.0, 0, 0.0, 0.0
    clock = IdleClock(lambda: now)
    for move, seconds in moves:
        now += seconds
        idle += seconds * (working == 0)
        if move == "take":
            taken += clock.take()
        elif move == "begin":
            clock.begin()
            working += 1
        elif working:
            clock.end()
            working -= 1
    assert taken + clock.take() == pytest.approx(idle)


def test_the_disk_is_that_of_the_run_folder(tmp_path: Path) -> None:
    assert 0 < disk_free(tmp_path) <= 1
    assert math.isnan(disk_free(tmp_path / "gone")), "a gap in a curve, and not the end of a run"


def test_what_the_learner_reports_is_registered() -> None:
    from learner.batch import read_batch
    from tests.learner_episodes import sample_group, tiny_model
    from tests.unit.test_learner_trainer import CURRENT, make_trainer, settings_of

    batch = read_batch([sample_group(tiny_model(), 0)])
    reported = make_trainer(settings_of("ppo", minibatches=1)).step(batch, step=1, **CURRENT)
    assert {"value_explained", "critic_grad_norm", "mismatch_warned", "tokens_of_age_0"} <= reported.keys()
    for name in (*reported, "seconds_read", "seconds_publish", "gpu_memory_peak"):
        lookup(f"learner/{name}")
