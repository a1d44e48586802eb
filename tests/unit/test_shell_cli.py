"""What a person sees of a mistake: one line per problem, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medr3.config import load
from medr3.errors import UserError, did_you_mean
from medr3.ops import local
from medr3.ops.jobs import connect, submit
from medr3.validation import describe_validation
from tests.synthetic_run import write_run

ROOT = Path(__file__).parents[2]
DEMO = "configs/demo.yaml"


def medr3(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medr3.cli", *arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def test_dry_run_prints_a_configuration_that_loads_again(tmp_path: Path) -> None:
    printed = medr3("train", DEMO, "--dry-run", "rollout.num_engines=3")
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout)["rollout"]["num_engines"] == 3
    again = tmp_path / "resolved.yaml"
    again.write_text(printed.stdout)
    assert medr3("train", str(again), "--dry-run").stdout == printed.stdout


def test_every_problem_of_a_configuration_is_one_line_with_its_key() -> None:
    done = medr3("train", DEMO, "--dry-run", "rollout.num_engine=3", "learner.workers=0")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "medr3: rollout.num_engine: no such setting: did you mean num_engines?",
        "medr3: learner.workers: input should be greater than or equal to 1, got 0",
    ]


def test_traceback_only_on_demand() -> None:
    assert "Traceback" not in medr3("report", "no-such-run").stderr
    assert "Traceback" in medr3("report", "no-such-run", MEDR3_DEBUG="1").stderr


def test_submit_refuses_a_run_folder_that_would_be_lost() -> None:
    done = medr3("submit", DEMO, "--address", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "run.folder=" in done.stderr


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(default=1, ge=1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    listed: list[Inner] = []
    named: dict[str, Inner] = {}
    maybe: Inner | None = None
    needed: int


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"needed": 1, "inner": {"sise": 2}}, "inner.sise: no such setting: did you mean size?"),
        ({"needed": 1, "listed": [{}, {"siz": 2}]}, "listed.1.siz: no such setting: did you mean size?"),
        ({"needed": 1, "named": {"a": {"siz": 2}}}, "named.a.siz: no such setting: did you mean size?"),
        ({"needed": 1, "maybe": {"siz": 2}}, "maybe.siz: no such setting: did you mean size?"),
        ({"needed": 1, "zzzzzz": 2}, "zzzzzz: no such setting"),
        ({"needed": 1, "inner": {"size": 0}}, "inner.size: input should be greater than or equal to 1, got 0"),
        ({}, "needed: is required"),
    ],
)
def test_validation_in_words(settings: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(settings)
    assert describe_validation(caught.value, Outer) == [line]


def test_did_you_mean_is_silent_where_nothing_is_near() -> None:
    assert did_you_mean("xyz", ["abc"]) == ""


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://"])
def test_an_address_that_is_no_dashboard_url_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"write it like http://127\.0\.0\.1:8265"):
        connect(address)


def test_an_address_where_nothing_listens_is_one_clear_line() -> None:
    with socket.socket() as bound:  # bound but not listening: connections are refused, and nobody else takes the port
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="nothing answers") as caught:
            connect(f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["tracking.api_key", "tracking.apikey", "judge.password", "store.secret"])
def test_submit_takes_no_secrets(key: str) -> None:
    with pytest.raises(UserError, match="readable on the dashboard"):
        submit(ROOT / DEMO, load(ROOT / DEMO, []), "http://127.0.0.1:9", [f"{key}=abc"])


def test_submit_sends_only_configurations_of_the_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must lie in the checkout"):
        submit(tmp_path / "mine.yaml", load(ROOT / DEMO, []), "http://127.0.0.1:9", [])


def test_status_of_a_local_run_says_whether_its_process_lives(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo"
    run.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (run / "status.json").write_text(json.dumps({"state": "training", "step": 4, "pid": ended.pid}))
    found = json.loads(medr3("status", "--json", cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout)
    assert found == {"state": "training", "step": 4, "pid": ended.pid, "alive": False}
    with pytest.raises(UserError, match="has ended already"):
        local.stop_run(run)


def test_stop_never_signals_a_process_that_is_not_ours(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "30"])
    try:
        (tmp_path / "status.json").write_text(json.dumps({"pid": stranger.pid}))
        with pytest.raises(UserError, match="has ended already"):
            local.stop_run(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_stop_ends_the_run_it_names(tmp_path: Path) -> None:
    code = "'medr3'; import time; print(flush=True); time.sleep(60)"
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    driver.stdout.readline()
    (tmp_path / "status.json").write_text(json.dumps({"pid": driver.pid, "host": socket.gethostname()}))
    assert str(driver.pid) in local.stop_run(tmp_path)
    assert driver.wait(timeout=30) == -signal.SIGTERM
    driver.stdout.close()


def test_audit_reports_violations_and_exits_with_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")  # its groups end without having been admitted
    done = medr3("audit", str(run))
    assert done.returncode == 1
    assert "violation: " in done.stdout
