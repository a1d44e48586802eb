"""Plans become schedules, processes are found and hit, and a driver that ended is started again: with real processes, small ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from medr3.chaos import conductor as conducting
from medr3.chaos.conductor import Conductor, RunFailed
from medr3.chaos.evidence import start_s
from medr3.chaos.faults import KINDS, NoTarget
from medr3.chaos.plan import Plan, RunPlan, Scheduled, kills, read_plan, schedule
from medr3.chaos.processes import Sample, Watcher, below, role_of
from medr3.chaos.runner import _stored_twin, make_runs
from medr3.chaos.scene import Scene
from medr3.chaos.soak import as_markdown, trend, trends_of
from medr3.cli import app
from medr3.config import load
from medr3.errors import UserError
from tests.chaos_run import make_run
from trajectories.events import EventKind

ROOT = Path(__file__).parents[2]
PLANS = sorted(path for path in (ROOT / "configs" / "chaos").glob("*.yaml") if path.name != "run.yaml")

# --- plans


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_shipped_plans_are_made_of_known_faults_and_good_configurations(path: Path) -> None:
    plan = read_plan(path, KINDS)
    for run in plan.runs:
        load(ROOT / plan.config, [*plan.overrides, *run.overrides])
        schedule(run, 0)


def test_the_plans_hold_as_many_faults_and_kinds_as_they_say() -> None:
    short, whole = (read_plan(ROOT / "configs" / "chaos" / name, KINDS) for name in ("short.yaml", "long.yaml"))
    assert sum(len(schedule(run, 0)) for run in short.runs) >= 24
    faults = [fault for run in whole.runs for fault in schedule(run, 0)]
    assert len(faults) >= 40
    assert {fault.kind for fault in faults} == KINDS.keys()


@given(st.integers(0, 99), st.integers(0, 30))
def test_a_seed_decides_everything(seed: int, drawn: int) -> None:
    run = RunPlan(name="r", faults=[{"kind": "a"}], draw=drawn, kinds=["b", "c"])  # type: ignore[list-item]
    first = schedule(run, seed)
    assert first == schedule(run, seed)
    assert [fault.number for fault in first] == list(range(1, drawn + 2))
    assert all(run.faults[0].delay_s[0] <= fault.delay_s <= run.faults[0].delay_s[1] and 0 <= fault.pick < 1 for fault in first)


@given(st.integers(0, 999))
def test_a_kill_during_a_start_follows_one_that_nobody_waits_for(seed: int) -> None:
    faults = schedule(kills(20, seed), seed)
    assert len(faults) == 20
    assert all(before.settle != (after.after_event == "started") for before, after in pairwise(faults))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs: [{name: a, faults: [driver_kiled]}]", "no fault is called 'driver_kiled': did you mean driver_killed?"),
        ("runs: [{name: a}, {name: a}]", "each run needs a name of its own"),
        ("runs: [{name: twin}]", "twin is taken"),
        ("runs: [{name: a, draw: 2}]", "lists no kinds"),
        ("runs: []", "runs"),
        ("runs: [", "is no YAML"),
        ("runs: [{name: a, faults: [{kind: driver_killed, when: 3}]}]", "when"),
    ],
)
def test_a_bad_plan_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_plan(path, KINDS)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_fault_that_the_run_cannot_have_is_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = Plan(config=ROOT / "configs/chaos/run.yaml", runs=[RunPlan(name="a", faults=[{"kind": "node_killed"}])])  # type: ignore[list-item]
    with pytest.raises(UserError, match="fault node_killed needs nodes"):
        next(make_runs(plan, 0, tmp_path / "out", say=print))
    assert not (tmp_path / "out").exists()


def test_the_command_lists_what_it_knows_and_refuses_what_it_does_not() -> None:
    listed = CliRunner().invoke(app, ["chaos", "--list"]).output
    assert "driver_killed" in listed and "resumed bit for bit" in listed and "one-ending-dropped" in listed
    refused = CliRunner().invoke(app, ["chaos", "--broken", "one-ending-droped"])
    assert isinstance(refused.exception, UserError) and "did you mean one-ending-dropped?" in str(refused.exception)


# --- processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process with one below it, which maps shared memory."""
    program = (
        "import mmap, os, subprocess, sys, time\n"
        "file = open(sys.argv[1], 'w+b'); file.truncate(4096); held = mmap.mmap(file.fileno(), 4096); print('up', flush=True)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)\n"
    )
    path = f"/dev/shm/medr3-test-{os.getpid()}"
    process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    yield process
    for each in below([process.pid]):
        os.kill(each.pid, signal.SIGKILL)
    process.wait()
    Path(path).unlink(missing_ok=True)


def test_a_watcher_knows_what_a_run_left_behind(sleeper: subprocess.Popen[bytes]) -> None:
    watcher = Watcher(lambda: [sleeper.pid])
    # A process that is seen between its birth and its program has nothing of its own yet.
    while len({each.pid for each in watcher.samples if each.descriptors > 0 and each.own_mib > 1}) < 2:
        watcher.look()
        time.sleep(0.05)
    sleeper.kill()
    sleeper.wait()
    (left,) = watcher.left_behind(0.2)
    assert left.pid != sleeper.pid and left.lives
    assert [str(path) for path in watcher.shared_left()] == [f"/dev/shm/medr3-test-{os.getpid()}"]
    os.kill(left.pid, signal.SIGKILL)
    assert watcher.left_behind(5) == []


def test_progress_bars_of_an_engine_hold_nothing_in_shared_memory() -> None:
    program = (
        "import multiprocessing, os; multiprocessing.set_start_method('spawn'); {}; from tqdm.auto import tqdm; list(tqdm([1]))\n"
        "from medr3.chaos.processes import shared_memory_of; print(len(shared_memory_of(os.getpid())))"
    )
    guarded = "from actors.process_guard import leave_no_semaphore; leave_no_semaphore()"
    for guard, held in (("0", "1"), (guarded, "0")):
        done = subprocess.run(
            [sys.executable, "-c", program.format(guard)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == held


def test_processes_are_known_by_what_they_are_called() -> None:
    commands = {
        "/x/python -m medr3.cli train configs/chaos/run.yaml": "driver", "ray::RolloutActor.run_group": "rollout actor",
        "VLLM::EngineCore": "engine process", "ray::Mailbox.next_order": "exchange", "/x/raylet/raylet --a": "raylet",
        "/x/gcs/gcs_server --b": "gcs", "ray::ServeController.listen_for_change": "serve controller", "ray::IDLE": "other",
    }  # fmt: skip
    assert {command: role_of(command) for command in commands} == commands


def test_a_disk_is_filled_to_its_last_block(tmp_path: Path) -> None:
    child = (
        "import resource, signal, sys; from pathlib import Path; from medr3.chaos.faults import _fill\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_001, 3_000_001))\n"
        "print(_fill(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", child, str(tmp_path / "filler")], capture_output=True, text=True, check=True)
    assert int(done.stdout) == (tmp_path / "filler").stat().st_size == 3_000_001


# --- a driver that ends

PROGRAM = """
import json, signal, sys, time
from pathlib import Path
from trajectories.events import EventKind, EventLog
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
folder, endings = Path(sys.argv[1]), [int(each) for each in sys.argv[2].split(",")]
life = len((folder / "lives").read_text()) if (folder / "lives").exists() else 0
(folder / "lives").write_text("x" * (life + 1))
with EventLog(folder / "events.jsonl") as log:
    if life:
        log.append(EventKind.RESUMED, generation=life + 1, step=0)
    for number in range(10_000 if endings[life] == 99 else 3):
        log.append(EventKind.ADMITTED, group_id=f"{life}-{number}", question_id="q", phase="joint")
        time.sleep(0.02)
        log.append(EventKind.TRAINED, group_id=f"{life}-{number}", engine_id="e", step=number + 1, episodes=1)
print("out of words", flush=True)
sys.exit(endings[life])
"""


def conductor_of(folder: Path, *endings: int) -> Conductor:
    """A driver that trains and then ends, with these codes one after the other; 99 stands for one that does not end by itself."""
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(folder), ",".join(map(str, endings)), "medr3.cli"]
    return Conductor(Scene(command, folder, folder.with_suffix(".log"), {"PYTHONPATH": str(ROOT)}), say=lambda line: None)


def a_kill(number: int = 1, **changes: object) -> Scheduled:
    fields = {
        "number": number,
        "kind": "driver_killed",
        "step": None,
        "phase": None,
        "after_event": None,
        "delay_s": 0.0,
        "seconds": None,
    }
    return Scheduled(**fields | {"settle": True, "pick": 0.0} | changes)  # type: ignore[arg-type]


def test_a_killed_driver_is_started_again_until_the_run_ends(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 99, 3, 0)
    conductor.play([a_kill(after_event="trained")])
    assert [(life.code, life.killed) for life in conductor.lives] == [(-9, True), (3, False), (0, False)]
    (fault,) = conductor.faults
    assert fault.driver_ended and fault.driver_may_end and fault.recovered_s is not None and fault.recovered_s > 0


def test_a_driver_that_ends_with_an_error_is_not_started_again(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 1)
    with pytest.raises(RunFailed, match="the driver ended with 1: out of words"):
        conductor.play([])
    conductor.give_up()
    assert [life.code for life in conductor.lives] == [1]


def test_a_driver_that_fails_for_ever_is_given_up(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", *[3] * 9)
    with pytest.raises(RunFailed, match=f"started {conducting.MOST_STARTS} times more"):
        conductor.play([])
    assert len(conductor.lives) == conducting.MOST_STARTS + 1


def test_a_run_that_ends_before_its_faults_leaves_them_undone(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 0)
    conductor.play([a_kill(step=100)])
    assert conductor.faults == [] and [life.code for life in conductor.lives] == [0]


def test_a_stopped_process_goes_on(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 99, 0)
    conductor.play([a_kill(1, kind="driver_stopped", seconds=0.5), a_kill(2)])
    stopped, killed = conductor.faults
    assert (stopped.driver_ended, killed.driver_ended) == (False, True)
    assert stopped.recovered_s is not None and stopped.recovered_s >= 0.5
    assert "for 0.5 s" in stopped.target


def test_a_fault_that_meets_a_driver_which_is_about_to_end_waits_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor, met = conductor_of(tmp_path / "run", 99, 99, 0), []

    def end_first(scene: Scene, fault: Scheduled) -> str:
        assert scene.process is not None
        met.append(scene.starts)
        scene.process.kill()
        scene.process.wait()
        if len(met) == 1:
            raise NoTarget("nothing is left of it")
        scene.struck_at = time.time()
        return "the second one"

    monkeypatch.setattr(conducting, "TARGET_S", 0.0)
    monkeypatch.setitem(KINDS, "driver_killed", replace(KINDS["driver_killed"], inject=end_first))
    monkeypatch.setattr(conducting, "RESUMABLE", (3, -9))
    conductor.play([a_kill()])
    assert met == [1, 2] and [fault.target for fault in conductor.faults] == ["the second one"]


def test_a_driver_that_ends_before_a_fault_is_due_is_replaced_by_one_that_trains(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 3, 99, 0)
    conductor.play([a_kill(delay_s=1.0)])
    assert [life.code for life in conductor.lives] == [3, -9, 0]
    resumed = [event.time for event in conductor.scene.events() if event.kind is EventKind.RESUMED]
    assert conductor.faults[0].at - resumed[0] > 1.0, "its delay begins when the new one trains"


def test_a_run_is_asked_to_pause_after_its_last_fault(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 99)
    conductor.play([a_kill(kind="driver_stopped", seconds=0.1)], stops=True)
    assert [(life.code, life.killed) for life in conductor.lives] == [(0, False)]


def test_a_fault_may_take_three_times_as_long_as_the_twins_start(tmp_path: Path) -> None:
    conductor = conductor_of(tmp_path / "run", 99, 0)
    conductor.usual_start_s = 100.0
    conductor.play([a_kill()])
    assert [fault.limit_s for fault in conductor.faults] == [300.0]


def test_a_whole_twin_is_used_again_and_one_of_another_configuration_is_not(tmp_path: Path) -> None:
    plan = Plan(config=ROOT / "configs/chaos/run.yaml", runs=[RunPlan(name="a")])
    folder = make_run(tmp_path / "twin", killed=False)
    (folder / "config.json").write_text(json.dumps(load(plan.config, ["run.name=twin"]).model_dump(mode="json")))
    assert _stored_twin(plan, 0, tmp_path, load(plan.config, [])) is None, "it has not ended"
    (folder / "summary.json").write_text(json.dumps({"heldout_by_phase": {"joint": {"joint": {"accuracy": 0.5, "n": 40}}}}))
    twin = _stored_twin(plan, 0, tmp_path, load(plan.config, []))
    assert twin is not None and twin.heldout == {"joint": {"joint": (0.5, 40)}} and start_s(twin.events) > 0
    assert _stored_twin(plan, 1, tmp_path, load(plan.config, [])) is None


# --- soak


def samples(grow: float) -> list[Sample]:
    return [
        Sample(1000.0 + 5 * i, pid, role, own, 50.0, 30)
        for i in range(120)
        for pid, role, own in ((1, "driver", 300 + grow * i), (2, "engine process", 900.0), (3, "other", 10.0 * i))
    ]


def test_a_leak_is_found_and_told_apart_from_noise() -> None:
    steps = [(1000.0 + i, 1.0 + 0.2 * (i % 7 == 0)) for i in range(600)]
    flat = trends_of(samples(0.0), steps, [])
    assert all(each.flat for each in flat) and {each.of for each in flat} == {"driver 1", "engine process 2", "run"}
    (leak,) = [each for each in trends_of(samples(0.5), steps, []) if not each.flat]
    assert (leak.of, leak.what) == ("driver 1", "own_mib") and leak.growth == pytest.approx(0.5 * 90, rel=0.05)
    assert "**grows**" in as_markdown([leak], 10)
    slower = trends_of(samples(0.0), [(1000.0 + i, 1.0 + i / 1000) for i in range(600)], [])
    assert [each.what for each in slower if not each.flat] == ["step_s"]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_a_trend_says_flat_of_what_does_not_rise(values: list[float]) -> None:
    falling = sorted(values, reverse=True)
    assert trend("x", "own_mib", [(float(i), value) for i, value in enumerate(falling)]).flat
