"""What a resume finds damaged: manifests, what checkpoints say of themselves, events; each is passed over or told in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from learner.checkpoint_folder import STATE, CheckpointRefused, check_whole, read_state, write_state
from medr3.errors import UserError
from medr3.run.manifest import MANIFEST, open_manifest
from medr3.run.resuming import next_generation, resume
from tests.fuzz.running import bounded
from tests.resumable import trained_for, write_checkpoint


@pytest.mark.parametrize("content", ["[]", "7", '{"ranks": 1000000000000}'])
def test_a_state_that_no_rank_wrote_is_refused_at_once(tmp_path: Path, content: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / STATE).write_text(content)
    with pytest.raises(CheckpointRefused), bounded():
        check_whole(folder)


@pytest.mark.parametrize("lost_manifest", [False, True])
def test_a_checkpoint_whose_manifest_is_damaged_is_passed_over(tmp_path: Path, lost_manifest: bool) -> None:
    config, manifest = trained_for(tmp_path, 3)
    shutil.rmtree(tmp_path / manifest.checkpoints[-1].folder)
    (tmp_path / manifest.checkpoints[-2].folder / MANIFEST).write_text("{")
    if lost_manifest:
        (tmp_path / MANIFEST).unlink()
    state = resume(config, say=lambda line: None)
    assert state is not None and state.step == 1


def test_a_state_whose_events_are_gone_is_refused(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 2)
    (tmp_path / "events.jsonl").unlink()
    with pytest.raises(UserError, match=rf"has 0 events, and the state of step 2 counts {manifest.events}: .* --fork"):
        resume(config)
    (tmp_path / "events.jsonl").write_text("nonsense\n" * 99)
    with pytest.raises(UserError, match=r"not an event .* bring the file back"):
        next_generation(tmp_path, resume(config))


@pytest.mark.parametrize("damage", ["a digit", "cut off", "no JSON"])
def test_a_damaged_manifest_of_the_run_is_passed_over_for_a_checkpoint_s(tmp_path: Path, damage: str) -> None:
    config, manifest = trained_for(tmp_path, 3)
    written = (tmp_path / MANIFEST).read_bytes()
    changed = {
        "a digit": written.replace(b'"model_tokens": 300', b'"model_tokens": 301'),
        "cut off": written[:-9],
        "no JSON": b"\xff",
    }
    (tmp_path / MANIFEST).write_bytes(changed[damage])
    assert changed[damage] != written
    said: list[str] = []
    assert resume(config, say=said.append) == manifest == open_manifest(tmp_path)
    assert len(said) == 1 and "is damaged" in said[0]
    assert resume(config, manifest.checkpoints[0].folder, say=said.append).step == 1
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / MANIFEST).write_bytes(changed[damage])
    with pytest.raises(UserError, match="start anew"):
        resume(config)


@pytest.mark.parametrize("digit", [b'"ranks": 2', b'"skipped_in_a_row": 1'])
def test_another_digit_in_a_checkpoint_s_state_is_found(tmp_path: Path, digit: bytes) -> None:
    write_state(tmp_path, {"ranks": 1, "skipped_in_a_row": 0, "hash": "a", "trained": {"policy": {"w": [1, 2]}}, "lora": None})
    assert read_state(tmp_path)["ranks"] == 1
    name = digit.split(b":")[0]
    content = (tmp_path / STATE).read_bytes()
    at = content.index(name) + len(name) + 2
    (tmp_path / STATE).write_bytes(content[:at] + digit[-1:] + content[at + 1 :])
    with pytest.raises(CheckpointRefused, match="cut off or changed"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.ledger.pop("admitted"), "ledger.admitted"),
        (lambda m: m.ledger.update(admitted=99), "ledger.admitted: 99"),
        (lambda m: m.controller.update(finished="no"), "controller.finished"),
        (lambda m: m.sampler["cursors"].update({"world/joint": "7"}), "sampler.cursors"),
        (lambda m: m.progress.update(wall_s=float("nan")), "progress.wall_s"),
        (lambda m: m.progress.update(step=7), "progress.step: 7"),
        (lambda m: m.progress.update(other=7), "other"),
        (lambda m: m.ledger["open"].append(m.ledger["open"][0]), "there twice"),
        (lambda m: m.controller.update(phase="nowhere"), "nowhere"),
    ],
)
def test_a_state_that_nothing_could_go_on_from_is_one_line(tmp_path: Path, change: Any, words: str) -> None:
    config, manifest = trained_for(tmp_path, 2, left_open=1)
    change(manifest)
    content = manifest.model_dump(mode="json")
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        resume(config)
    assert "\n" not in str(error.value)
