"""A canary stands in every place where a person could put a secret; the real code writes, and every byte that it wrote is looked at."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from actors.messages import GroupSummary
from medr3 import cli
from medr3.cli_common import load_config
from medr3.errors import UserError
from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from medr3.ops import jobs
from medr3.ops.doctor import check_variables
from medr3.run.journal import FinishedGroup, Journal
from medr3.run.manifest import write_json
from medr3.run.train import _reason
from security.hiding import HIDDEN, hide, is_secret_name, scrub, scrubbed
from trajectories.events import EventKind, EventLog
from trajectories.groups import Ending, Outcome
from trajectories.publication import WeightAck
from trajectories.recorder import Recorder
from trajectories.schema import Episode, WeightVersion, to_table
from trajectories.store import read

ROOT = Path(__file__).parents[2]
CANARY = "canary-9b2f6c51d0e84a77"
JUDGE = ["rollout.judge.url=http://127.0.0.1:9/v1", "rollout.judge.model=m", "rollout.judge.api_key_env=MY_JUDGE_KEY"]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the variables that settings name, and in those that programs know."""
    for name in ("MY_JUDGE_KEY", "SEARCH_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, CANARY)


def holding(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]


def test_files_of_a_run_hold_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings, status, events, rows' reasons, metrics, TensorBoard and W&B (offline, the real one), fed with texts that repeat it."""
    said = f"401 Incorrect API key provided: {CANARY}"
    config = load_config(ROOT / "configs" / "demo.yaml", JUDGE)
    settings = config.model_dump(mode="json") | {"note": said, "nested": [{CANARY: said}]}
    write_json(tmp_path / "config.json", settings)
    tracking = TrackingConfig(wandb="offline", tensorboard=True, progress=True)
    tracker = Tracker(tmp_path, tracking, name="r", settings=settings)
    tracker.log(1, "reasoning", {"reward/mean": 0.5})
    with EventLog(tmp_path / "events.jsonl") as events:
        journal = Journal(tmp_path, events, tracker, Recorder(tmp_path / "trajectories", generation=1))
        journal.ack(WeightAck("e0", WeightVersion(1, 1), False, "", math.nan, said))
        event = events.append(EventKind.VOIDED, group_id="g", reason=said)
        events.append(EventKind.TRAINED, group_id="h", step=1, engine_id="e0", episodes=1, age=0, dropped_samples=[said])
        journal.status(state="failed", reason=said)
        journal.say(said)
        version = WeightVersion(1, 1)
        row = Episode("r", "v", "v-0", "q", 0, "p", "s", "text", [1], [False], [0.0], [], [], [])
        group = FinishedGroup(GroupSummary("v", 0, "e0", version, version, [0.0], [False]), "s", None, to_table([row]))  # type: ignore[arg-type]
        ended: Any = SimpleNamespace(drain_endings=lambda: [Ending("v", "q", "p", 0, "e0", Outcome.VOIDED, said, -1, 0)])
        journal.endings(ended, {"v": group}, version)
        journal.store_rest(0)
        journal.store.close()
    tracker.close()
    assert read(tmp_path / "trajectories")["reason"].to_pylist() == [f"401 Incorrect API key provided: {HIDDEN}"]
    assert holding(tmp_path) == []
    assert (tmp_path / "wandb").is_dir() and HIDDEN in (tmp_path / "config.json").read_text()
    assert event.fields["reason"] == f"401 Incorrect API key provided: {HIDDEN}"
    out = capsys.readouterr()
    assert CANARY not in out.out + out.err and HIDDEN in out.out


def test_lines_of_the_command_line_hold_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value in the wrong place is refused without being repeated, wherever it was put."""
    config = ROOT / "configs" / "demo.yaml"
    for override in (
        f"rollout.judge.api_key={CANARY}", f"rollout.judge.url=http://user:{CANARY}@h/v1", f"rollout.judge.api_key_env={CANARY}",
        f"rollout.judge.url=http://h/v1?api_key={CANARY}", f"run.mirror=s3://key:{CANARY}@bucket/x", f"run.seed={CANARY}",
        f"tracking.wandb={CANARY}", f"run.name=[{CANARY}", f"datasets.{CANARY}.train=x", CANARY,
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["medr3", "train", str(config), override, "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        assert ended.value.code == 2, override
        assert out.err.startswith("medr3: ") and CANARY not in out.out + out.err, override


def test_what_a_dry_run_and_the_doctor_say_names_variables_and_not_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", JUDGE)
    assert check_variables(config).ok and CANARY not in str(check_variables(config))
    monkeypatch.delenv("MY_JUDGE_KEY")
    assert "MY_JUDGE_KEY for the judge" in check_variables(config).found
    monkeypatch.setattr(sys, "argv", ["medr3", "train", str(ROOT / "configs" / "demo.yaml"), *JUDGE, "--dry-run"])
    with pytest.raises(SystemExit):
        cli.main()
    assert CANARY not in capsys.readouterr().out


def test_a_job_takes_no_secret_to_the_cluster(tmp_path: Path) -> None:
    """Neither in its words, nor among its variables and notes, nor as a file of the checkout."""
    config = load_config(ROOT / "configs" / "demo.yaml", JUDGE)
    assert CANARY not in json.dumps(jobs.environment(config))
    for override in (f"run.name={CANARY}", f"rollout.judge.url=http://127.0.0.1/{CANARY}"):
        with pytest.raises(UserError, match="readable on the dashboard") as refused:
            jobs.submit(ROOT / "configs" / "demo.yaml", config, "http://127.0.0.1:9", [override])
        assert CANARY not in str(refused.value)
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    secret = [".env", ".env.local", ".netrc", ".medr3-secrets", "keys/server.pem", ".ray/auth_token", "my_auth_token.txt"]
    for name in (*secret, "configs/demo.yaml"):
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CANARY if name in secret else "run: {}")
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, excludes=jobs.EXCLUDES)
    assert [name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")] == ["configs/demo.yaml"]


def test_the_reason_of_a_failed_run_holds_no_secret() -> None:
    assert _reason(RuntimeError(f"bad key {CANARY}")) == f"RuntimeError: bad key {HIDDEN}"


def test_what_is_hidden() -> None:
    hide("another-value-of-a-variable-with-any-name")
    assert scrub(f"{CANARY}{CANARY} another-value-of-a-variable-with-any-name") == f"{HIDDEN}{HIDDEN} {HIDDEN}"
    assert scrubbed({"a": (1, CANARY), CANARY: None}) == {"a": [1, HIDDEN], HIDDEN: None}
    hide("short")
    assert scrub("a short word stays") == "a short word stays"
    kept = ("run.token_budget", "budget.max_tokens", "http_token_file", "rollout.engine.kv_cache_mib", "tokenizer", "keywords")
    assert not any(is_secret_name(name) for name in kept)
    assert all(
        is_secret_name(name) for name in ("api-key", "X-Api-Key", "Authorization", "access_token", "client_secret", "passwd")
    )


def test_a_secret_is_hidden_however_a_text_spells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "correct-horse-battery\n")
    monkeypatch.setenv("OTHER_API_KEY", 'p"a\\ss/w+rd~é')
    for text in (
        f"Illegal header value {b'Bearer correct-horse-battery' + bytes([10])!r}",
        "the key correct-horse-battery is unknown",
    ):
        assert "correct-horse" not in scrub(text)
    key = 'p"a\\ss/w+rd~é'
    spelled = (
        quote(key),
        quote(key, safe=""),
        quote_plus(key),
        json.dumps(key),
        json.dumps(key, ensure_ascii=False),
        repr({"k": key}),
    )
    for text in spelled:
        assert "ss" not in scrub(text), text
