"""What the benchmarks of whole trainings say of what they measured, and what they refuse to compare."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.end_to_end import GROUP, GROUPS, WITH, WITHOUT, Steps, settings
from bench.end_to_end import report as report_steps
from bench.harness import Spread
from bench.processor_time import ProcessorTime
from bench.startup import Start, _by_name, moments, report
from medr3.config import RunConfig
from trajectories.events import Event, EventKind


def event(kind: EventKind, time: float, **fields: object) -> Event:
    return Event(kind, time, fields)


def start(seconds: float) -> Start:
    return Start(seconds, ProcessorTime(30, 40, 100), {"index": 2.0, "ray": 5.0, "model": 65.0}, {"ray::RolloutActor": 9.0})


def test_moments_are_those_of_the_latest_start_and_the_first_of_their_kind() -> None:
    events = [
        event(EventKind.SERVICES_READY, 10, ready={"ray": 3.0}),
        event(EventKind.PROBE, 11),
        event(EventKind.SERVICES_READY, 112, ready={"ray": 103.0, "engines": 111.5}),
        event(EventKind.ADMITTED, 113),
        event(EventKind.PROBE, 114),
        event(EventKind.PROBE, 119),
    ]
    assert moments(events, 100) == {"ray": 3.0, "engines": 11.5, "admitted": 13, "probe": 14}


def test_the_report_of_a_start_leaves_teaching_out_and_names_who_used_the_processor() -> None:
    found = report(Spread(0.5, 0.4, 0.8), start(90), [start(20), start(24), start(40)], start(31))
    values = {row["name"]: row["value"] for row in found["figures"]}
    assert values["cold: of these, teaching the model"] == 60
    assert values["warm: first step"] == 24
    assert values["warm: the machine's share that other programs took"] == 0.1
    assert [row["reached"] for row in found["ratios"]] == [True, False, True]
    assert any("ray::RolloutActor 9.0" in note for note in found["notes"])


def test_processes_are_named_by_what_they_call_themselves() -> None:
    assert any("pytest" in name for name in _by_name(os.getpid()))


def test_both_phases_are_a_valid_configuration_of_equal_lengths_and_one_optimiser_step(tmp_path: Path) -> None:
    config = RunConfig.model_validate(settings(tmp_path / "run", None, 14))
    assert [(phase.retrieval, phase.min_steps) for phase in config.curriculum.phases] == [(False, 14), (True, 14)]
    assert (config.rollout.group_size, config.rollout.groups_per_step, config.learner.minibatches) == (GROUP, GROUPS, 1)
    assert config.rollout.max_staleness == 0


def test_steps_are_compared_within_rounds_and_only_where_both_sample_alike() -> None:
    ours = [Steps(1.0, 1.5, 10_000), Steps(2.0, 1.5, 10_000)]
    trl = [Steps(4.0, 4.0, 10_900), Steps(6.0, 4.0, 10_900)]
    searching = [steps._replace(seconds=2 * steps.seconds, tokens=1.8 * steps.tokens) for steps in ours]
    found = report_steps({WITHOUT: ours, WITH: searching, "TRL, generate": trl, "TRL, continuous batching": trl}, [])
    ratios = {row["name"]: row["value"] for row in found["ratios"]}
    assert ratios["steps a second over TRL, generate"] == 3.5
    assert ratios["processor time of a step under that of TRL, generate"] == pytest.approx(4.0 / 1.5)
    assert ratios["model tokens a second with retrieval over without"] == pytest.approx(0.9)
    with pytest.raises(RuntimeError, match="TRL, generate samples 5000 tokens a step, medr3 10000"):
        report_steps({WITHOUT: ours, WITH: ours, "TRL, generate": [Steps(4.0, 4.0, 5_000)] * 2}, [])


def test_without_a_peer_the_report_says_so() -> None:
    ours = [Steps(1.0, 1.5, 10_000)]
    assert any("--peer" in note for note in report_steps({WITHOUT: ours, WITH: ours}, [])["notes"])
