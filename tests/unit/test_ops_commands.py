"""What ops commands say and write, as far as no cluster is needed."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors.autoscaler import Decision, Fleet, Load
from actors.config import RolloutConfig
from medr3.cli import app
from medr3.config import load
from medr3.errors import UserError
from medr3.observe.alerts import ALERTS
from medr3.ops import doctor
from medr3.ops.connection import connect, token_source
from medr3.ops.control import resize
from medr3.ops.jobs import environment, submit_entrypoint, training_command
from medr3.ops.nodes import NodeReport, find_node
from medr3.ops.relay import answer
from medr3.ops.telling import status_lines
from medr3.run.control import POOL, ControlRefused, PoolSize, read_pool_size, write_pool_size
from medr3.run.scaling import make_autoscaler
from medr3.run.standing import steps_left
from medr3.run.train import _reason

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"


def run_folder(folder: Path, *overrides: str, **status: object) -> Path:
    told = {"state": "training", "phase": "joint", "host": "a-host-of-a-cluster", "engines": {"engine-0.0": "healthy"}} | status
    (folder / "status.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(load(DEMO, list(overrides)).model_dump(mode="json")), encoding="utf-8")
    return folder


def test_a_number_of_engines_is_taken_once_and_the_last_one_counts(tmp_path: Path) -> None:
    assert read_pool_size(tmp_path) is None
    for engines in (3, 5):
        write_pool_size(tmp_path, PoolSize(engines, 1.0))
    assert read_pool_size(tmp_path) == PoolSize(5, 1.0)
    assert read_pool_size(tmp_path) is None


NO_NUMBERS = ("", "[]", "null", '{"engines": 0, "time": 1}', '{"engines": true, "time": 1}', '{"engines": "2", "time": 1}')


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_of_engines_is_named_and_out_of_the_way(tmp_path: Path, text: str) -> None:
    (tmp_path / POOL).write_text(text, encoding="utf-8")
    with pytest.raises(ControlRefused, match="is no number of engines; write one with: medr3 scale --engines N"):
        read_pool_size(tmp_path)
    assert read_pool_size(tmp_path) is None


def test_scaling_says_what_follows(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    assert resize(folder, "4") == f"asked {folder} for 4 engines (now 1)"
    assert (
        resize(folder, "auto")
        == f"asked {folder} for its own 1 engines (now 1), in place of a command that it had not taken yet"
    )
    assert read_pool_size(folder) is not None
    elastic = run_folder(tmp_path, "rollout.autoscale={max_engines: 4}")
    assert "for the number that its load asks for" in resize(elastic, "auto")


@pytest.mark.parametrize(
    ("engines", "status", "overrides", "said"),
    [
        ("0", {}, [], "--engines 0: give a number from 1 to 10000, or auto"),
        ("two", {}, [], "--engines two: give a number"),
        ("-1", {}, [], "--engines -1: give a number"),
        ("2", {"state": "stopped"}, [], "is not running"),
        ("2", {"state": "interrupted"}, [], "is not running"),
        ("2", {}, ["rollout.colocated=true"], "share the learner's hardware"),
    ],
)
def test_a_number_that_nobody_would_take_is_refused(
    tmp_path: Path, engines: str, status: dict[str, object], overrides: list[str], said: str
) -> None:
    folder = run_folder(tmp_path, *overrides, **status)
    with pytest.raises(UserError) as refused:
        resize(folder, engines)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (folder / POOL).exists()


def test_a_pool_of_a_fixed_size_moves_for_a_person_and_for_nodes_that_go_and_for_nothing_else() -> None:
    scaler = make_autoscaler(RolloutConfig(num_engines=2))
    starved = Load(engines_at_work=2.0, trainer_busy=0.1, buffered=0.0, most_full=64.0)
    assert scaler.observe(Fleet(2), starved, now=100.0) == Decision(2)
    assert scaler.observe(Fleet(1), None, now=1e6) == Decision(2), (
        "an engine that is gone for good stays so, as max_engine_restarts wants"
    )
    assert "about to go" in scaler.observe(Fleet(1, leaving=1), None, now=1e6).reason
    scaler.manual = 4
    assert scaler.observe(Fleet(2), None, now=1e6 + 5) == Decision(4, "set by hand")
    scaler.manual = None
    assert scaler.observe(Fleet(4), None, now=1e6 + 10) == Decision(2, "bounds are 2 to 2")


def test_every_command_says_the_same_in_json(tmp_path: Path) -> None:
    folder = str(run_folder(tmp_path))
    scaled = CliRunner().invoke(app, ["scale", "--engines", "2", folder, "--json"])
    assert json.loads(scaled.output) == {"said": f"asked {folder} for 2 engines (now 1)"}
    phase = CliRunner().invoke(app, ["phase", "hold", folder, "--json"])
    assert json.loads(phase.output)["said"].startswith(f"asked {folder} to stay in its phase")
    status = CliRunner().invoke(app, ["status", folder, "--json"])
    assert json.loads(status.output)["engines"] == {"engine-0.0": "healthy"}


def test_a_status_of_an_older_or_a_dead_run_is_told_as_far_as_it_goes() -> None:
    assert status_lines({"state": "preparing", "phase": "", "step": 0}) == ["state: preparing", "phase: ", "step: 0"]
    dead = status_lines({"state": "training", "alive": False, "time": 10.0}, now=75.0)
    assert dead == ["state: training", "alive: no, its process has ended without a word", "last heard: 65 s ago"]


def test_the_steps_that_are_left_are_those_of_this_phase_and_of_later_ones() -> None:
    curriculum = load(
        DEMO, [f"curriculum.phases.{phase}.max_steps={steps}" for phase, steps in enumerate((10, 20, 30))]
    ).curriculum
    assert steps_left(curriculum, 0, 0) == 60
    assert steps_left(curriculum, 1, 5) == 45
    assert steps_left(curriculum, 2, 40) == 0


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OSError) as full, open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
        file.write(b"x")
    assert full.value.errno == errno.ENOSPC
    full.value.filename = "/shared/run/metrics.jsonl"
    assert _reason(ExceptionGroup("tasks", [full.value])) == "the disk is full (/shared/run/metrics.jsonl): make room there"


# --- the connection


class Refusing(BaseHTTPRequestHandler):
    status, text = 200, ""
    later: tuple[int, str] | None = None  # what everything but the question for the version is answered

    def do_GET(self) -> None:
        status, text = self.later if self.later and self.path != "/api/version" else (self.status, self.text)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "Unauthorized: Missing authentication token", "the cluster asks for a token"),
        (403, "Forbidden: Invalid authentication token", "it is wrong or has expired"),
        (404, "not here", "this is no Ray dashboard"),
        (200, "<html>", "this is no Ray dashboard"),
        (200, '{"version": "4", "ray_version": "1.0.0", "ray_commit": ""}', "Ray version 1.0.0 is running on the cluster"),
    ],
)
def test_what_answers_otherwise_is_one_line(server: HTTPServer, status: int, text: str, said: str) -> None:
    Refusing.status, Refusing.text = status, text
    with pytest.raises(UserError) as refused:
        connect(f"http://127.0.0.1:{server.server_port}")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_head_that_has_just_started_is_waited_for(server: HTTPServer) -> None:
    Refusing.status, Refusing.text = 200, '{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}'
    Refusing.later = (500, "No available agent to submit job, please try again later.")

    def started() -> None:
        Refusing.later = (200, '{"job_id": "j", "submission_id": "raysubmit_j"}')

    timer = threading.Timer(1.0, started)
    timer.start()
    try:
        assert submit_entrypoint(connect(f"http://127.0.0.1:{server.server_port}"), "true") == "raysubmit_j"
    finally:
        timer.join()
        Refusing.later = None


def test_a_token_that_expires_after_the_first_word_is_told_as_well(server: HTTPServer) -> None:
    Refusing.status, Refusing.text = 200, '{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}'
    Refusing.later = (403, "Forbidden: Invalid authentication token")
    try:
        for command in (["status"], ["logs"], ["stop"], ["phase", "hold"], ["scale", "--engines", "2"], ["drain"]):
            done = CliRunner().invoke(app, [*command, "--address", f"http://127.0.0.1:{server.server_port}"])
            assert isinstance(done.exception, UserError), (command, done.exception)
            assert "refuses the token" in str(done.exception) and "\n" not in str(done.exception)
    finally:
        Refusing.later = None


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://127.0.0.1:port", "http://127.0.0.1:99999"]
)
def test_what_is_no_address_says_how_one_looks(address: str) -> None:
    with pytest.raises(UserError, match="write it like http://"):
        connect(address)


def test_the_token_is_looked_for_where_ray_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert token_source() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert token_source() == str(tmp_path / ".ray" / "auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", os.devnull)
    assert token_source() == ""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert token_source() == "the environment variable RAY_AUTH_TOKEN"


# --- what travels


def test_a_relayed_command_answers_or_refuses_in_its_own_words(tmp_path: Path) -> None:
    here = metadata.version("medr3")
    folder = str(run_folder(tmp_path))
    assert json.loads(answer(here, ["status", "--json", folder])["printed"])["phase"] == "joint"
    assert "is no run folder" in answer(here, ["status", str(tmp_path / "..")])["error"]
    assert answer("9.9", ["status"])["error"].startswith(f"the cluster's head has medr3 {here}, this is 9.9: ")


def test_the_relay_is_a_program_whose_answer_is_one_line_of_its_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medr3.ops.relay", metadata.version("medr3"), "phase", "hold", str(run_folder(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("medr3-answer ")]
    assert json.loads(line.removeprefix("medr3-answer "))["printed"].startswith("asked ")


def test_a_job_has_time_to_end_its_step() -> None:
    config = load(ROOT / "configs/recipes/qwen2.5-7b.yaml", [])
    assert int(environment(config)["RAY_JOB_STOP_WAIT_TIME_S"]) >= config.learner.step_timeout_s


def test_a_node_is_found_by_its_address_or_the_beginning_of_its_id() -> None:
    nodes = [NodeReport("abc1", "10.0.0.1", True, "nothing", {}), NodeReport("abd2", "10.0.0.2", False, "1 GPU", {"engine": 2})]
    assert find_node(nodes, "abd") is nodes[1] and find_node(nodes, "10.0.0.1") is nodes[0]
    assert str(nodes[1]) == "abd2  10.0.0.2: offers 1 GPU, runs 2 engines"
    with pytest.raises(UserError, match="ab: means 2 nodes: name one by its id"):
        find_node(nodes, "ab")
    with pytest.raises(UserError, match=r"10\.0\.0\.9: is no node of this cluster; there are"):
        find_node(nodes, "10.0.0.9")


# --- the doctor


def test_the_doctor_finds_this_machine_well(tmp_path: Path) -> None:
    checks = doctor.examine(load(DEMO, [f"run.folder={tmp_path / 'run'}"]), None)
    by_name = {check.name: check for check in checks}
    assert [str(check) for check in checks if not check.ok and check.name not in ("memory", "disk")] == []
    assert {
        "Python",
        "packages",
        "vLLM",
        "FAISS",
        "vLLM plugin",
        "secrets",
        "GPU memory",
        "run folder",
        "index",
        "GPUs",
    } <= set(by_name)
    assert list((tmp_path / "run").iterdir()) == [], "it leaves nothing behind"


def test_every_finding_of_the_doctor_has_its_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    overrides = [
        f"run.folder={tmp_path / 'file' / 'run'}", f"retrieval.index={tmp_path / 'no-index'}", "tracking.wandb=online",
        f"model.path={tmp_path}", "rollout.engine.gpus=1", "learner.gpus_per_worker=1",
        "rollout.tools={web: {kind: json_api, url: 'https://search.example/?q={query}', header_variables: {A: MEDR3_NO_SUCH_TOKEN}}}",
    ]  # fmt: skip
    found = {check.name: check for check in doctor.examine(load(DEMO, overrides), None) if not check.ok}
    assert {"run folder", "index", "model", "GPUs", "secrets", "GPU memory"} <= set(found)
    assert "MEDR3_NO_SUCH_TOKEN for web" in found["secrets"].found
    assert "no-index does not exist" in found["index"].found
    assert all(check.mend for check in found.values())


def test_the_doctor_says_it_in_json_and_by_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["doctor", str(DEMO), f"run.folder={tmp_path / 'file' / 'run'}", "--json"])
    assert done.exit_code == 1
    found: list[dict[str, Any]] = json.loads(done.output)
    folder = next(check for check in found if check["name"] == "run folder")
    assert not folder["ok"] and "set run.folder" in folder["mend"]


def test_a_token_that_others_can_read_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x")
    path.chmod(0o644)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert f"chmod 600 {path}" in str(doctor.check_token(cluster=True))
    path.chmod(0o600)
    assert doctor.check_token(cluster=True).ok
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert doctor.check_token(cluster=True).mend == "set RAY_AUTH_MODE=token"
    assert doctor.check_token(cluster=False).ok


def test_an_unreachable_cluster_is_a_finding_and_not_the_end() -> None:
    checks = doctor.examine(load(DEMO, ["run.folder=/shared/run"]), "http://127.0.0.1:9")
    (line,) = [str(check) for check in checks if check.name == "cluster"]
    assert "nothing answers" in line


@pytest.mark.parametrize("recipe", ["qwen2.5-7b", "qwen2.5-14b"])
def test_what_cannot_fit_is_refused_before_anything_starts(recipe: str, tmp_path: Path) -> None:
    path = str(ROOT / f"configs/recipes/{recipe}.yaml")
    sent = ["submit", path, "--address", "http://127.0.0.1:9", f"run.folder={tmp_path / 'run'}"]
    assert "model.path is models/Qwen2.5" in str(CliRunner().invoke(app, sent).exception)
    sent.append(f"model.path=/shared/models/{recipe.replace('qwen', 'Qwen').replace('b', 'B')}")
    refused = CliRunner().invoke(app, [*sent, "hardware.learner_gpu_gib=24", "hardware.engine_gpu_gib=24"]).exception
    assert isinstance(refused, UserError)
    lines = str(refused).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["learner GPU", "engine GPU"]
    assert all("GiB are needed" in line for line in lines)
    fits = CliRunner().invoke(app, sent).exception
    assert "nothing answers" in str(fits), "it fits the cards that the recipe names, so the cluster is asked"


# --- the page for those on duty


def test_every_alert_has_its_section_in_the_runbook() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    sections = {line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")}
    assert {alert.name for alert in ALERTS} <= sections
    assert not {name for name in sections if name.startswith("Medr3")} - {alert.name for alert in ALERTS}, (
        "of alerts that are gone"
    )


def test_the_page_names_commands_and_files_that_there_are() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    assert set(re.findall(r"`medr3 ([a-z]+)", page)) <= known
    named = set(re.findall(r"(?:deploy|tests|docs|medr3)/[\w./-]+\.(?:py|yaml|sh|md)|deploy/Containerfile", page))
    assert named and all((ROOT / name).exists() for name in named - {"docs/transcripts/cluster.md"})


def test_a_fork_is_submitted_with_the_path_that_the_nodes_see() -> None:
    words = ["submit", "configs/demo.yaml", "--address", "http://127.0.0.1:9", "run.folder=/shared/fork", "--fork", "runs/a@4"]
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, UserError) and str(refused).startswith("--fork runs/a@4: the cluster does not see this folder")
    assert training_command("c.yaml", [], "/runs/a@4", new_index=True).endswith("--resume auto --fork /runs/a@4 --new-index")
    assert "--fork" not in training_command("c.yaml", [])
