"""Runs of several seeds taken together, from their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medr3.evaluation.heldout_file import append_heldout
from medr3.evaluation.stages import read_stages, stages_as_markdown


def leave_run(folder: Path, rights: dict[str, int], on_better: dict[str, int]) -> Path:
    """A run that answered so many of 100 questions right after each stage, and met 50 contradictions each time."""
    folder.mkdir()
    for stage, right in rights.items():
        append_heldout(folder, stage, "joint", {f"q{i}": i < right for i in range(100)})
    cells = {
        stage: {"joint": {"disputes": {"met": 60, "decided": 50, "on_better": better}}} for stage, better in on_better.items()
    }
    (folder / "summary.json").write_text(json.dumps({"heldout_by_phase": cells}))
    return folder


def test_seeds_are_taken_together_stage_by_stage(tmp_path: Path) -> None:
    runs = [
        leave_run(tmp_path / "a", {"cold_start": 40, "joint": 90}, {"cold_start": 25, "joint": 49}),
        leave_run(tmp_path / "b", {"cold_start": 50, "joint": 100}, {"cold_start": 20, "joint": 50}),
    ]
    first, last = read_stages(runs)
    assert (first.name, first.accuracy.mean, last.accuracy.mean) == ("cold_start", 0.45, 0.95)
    assert first.accuracy.high < last.accuracy.low
    assert (first.rested.decided, first.rested.on_better) == (100, 45)
    assert last.on_better is not None and last.on_better.mean == pytest.approx(0.99) and last.on_better.low > 0.94
    markdown = stages_as_markdown([first, last])
    assert "| cold start | **0.450**" in markdown and "of 100 |" in markdown


def test_a_run_that_met_no_contradiction_says_so(tmp_path: Path) -> None:
    run = leave_run(tmp_path / "a", {"cold_start": 40}, {})
    (stage,) = read_stages([run])
    assert stage.on_better is None and stages_as_markdown([stage]).endswith("| – |")
