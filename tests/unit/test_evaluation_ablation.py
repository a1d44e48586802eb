"""Arms read, shared and compared, on run folders as runs leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medr3.config import load
from medr3.errors import UserError
from medr3.evaluation import ablation
from medr3.evaluation.ablation import Arm, read_arms, run_arms
from medr3.evaluation.ablation_table import as_json, as_markdown, as_svg, compare_arms
from medr3.evaluation.heldout_file import append_heldout, read_heldout

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
FULL, WITHOUT = Arm(name="full"), Arm(name="no evidence reward", overrides=["a=1"])


def leave_run(folder: Path, shares: dict[str, float], tokens: int = 1000) -> None:
    """A run that answered so large a share of 100 questions right in each phase, after a cold start that knew nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage, right in (("cold_start", dict.fromkeys(shares, 0.0)), ("joint", shares)):
        for phase, share in right.items():
            append_heldout(folder, stage, phase, {f"{phase}/{i}": i < 100 * share for i in range(100)})
    phases = [{"name": "joint", "steps": 9, "left_by": "plateau"}]
    summary = {"model_tokens": tokens, "phases": phases, "heldout": {"cold_start": 0.0, "joint": 0.5}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_arms_are_compared_question_by_question(tmp_path: Path) -> None:
    for seed in (1, 2):
        leave_run(tmp_path / "full" / f"seed-{seed}", {"reasoning": 0.9, "joint": 0.8})
        leave_run(tmp_path / "no-evidence-reward" / f"seed-{seed}", {"reasoning": 0.9, "joint": 0.6}, tokens=3000)
    full, without = compare_arms(tmp_path, [FULL, WITHOUT], [1, 2])
    assert (full.accuracy.mean, full.by_phase, full.against_first) == (0.85, {"reasoning": 0.9, "joint": 0.8}, None)
    assert without.by_seed == {1: 0.75, 2: 0.75} and without.model_tokens == 3000
    assert without.against_first is not None
    assert without.against_first.difference.mean == pytest.approx(-0.1)
    assert without.against_first.difference.high < 0 and without.against_first.p < 0.01
    markdown = as_markdown([full, without])
    assert "| no evidence reward | **0.750**" in markdown and "-0.100" in markdown
    assert json.loads(as_json([full, without]))[1]["steps"] == {"1": ["joint 9 (plateau)"], "2": ["joint 9 (plateau)"]}
    assert as_svg([full, without]).count("<circle") == 4


def test_arms_that_were_asked_other_questions_are_not_compared(tmp_path: Path) -> None:
    leave_run(tmp_path / "full" / "seed-1", {"joint": 0.8})
    leave_run(tmp_path / "no-evidence-reward" / "seed-1", {"reasoning": 0.8})
    with pytest.raises(ValueError, match="other questions"):
        compare_arms(tmp_path, [FULL, WITHOUT], [1])


def test_other_arms_take_over_the_cold_start_and_the_budget_of_the_first(tmp_path: Path, monkeypatch) -> None:
    trained: list[tuple[str, list[str]]] = []

    def train(config: Path, folder: Path, overrides: list[str]) -> None:
        trained.append((folder.parent.name, overrides))
        leave_run(folder, {"joint": 0.5}, tokens=4321)
        (folder / "cold_start").mkdir(exist_ok=True)
        (folder / "cold_start" / f"{folder.parent.name}.txt").touch()

    monkeypatch.setattr(ablation, "_train", train)
    run_arms(DEMO, [FULL, WITHOUT], [5], ["x=1"], tmp_path, say=lambda line: None)
    assert trained == [
        ("full", ["x=1", "run.seed=5"]),
        ("no-evidence-reward", ["x=1", "a=1", "run.seed=5", "run.token_budget=4321"]),
    ]
    assert (tmp_path / "no-evidence-reward" / "seed-5" / "cold_start" / "full.txt").exists()
    run_arms(DEMO, [FULL, WITHOUT], [5], ["x=1"], tmp_path, say=lambda line: None)
    assert len(trained) == 2, "what has ended is not run again"


def test_every_shipped_arm_is_a_valid_configuration() -> None:
    for arm in read_arms(DEMO, None, []):
        load(DEMO, arm.overrides)


def test_every_arm_but_the_first_goes_on_until_the_tokens_are_used(tmp_path: Path) -> None:
    path = tmp_path / "arms.yaml"
    path.write_text("until_spent: [x=1]\narms: [{name: a, overrides: [y=2]}, {name: b, overrides: [y=2]}]")
    assert [arm.overrides for arm in read_arms(DEMO, path, [])] == [["y=2"], ["x=1", "y=2"]]


@pytest.mark.parametrize(
    ("content", "only", "words"),
    [
        ("arms: [{name: a}]", [], "not a list of arms"),
        ("arms: [{name: a}, {name: b}]", ["c"], "has no arm 'c'"),
        (":", [], "not a"),
    ],
)
def test_bad_arms_are_one_line(tmp_path: Path, content: str, only: list[str], words: str) -> None:
    path = tmp_path / "arms.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_arms(DEMO, path, only)
    assert "\n" not in str(error.value)


def test_the_later_report_of_a_stage_counts_and_a_cut_off_line_does_not(tmp_path: Path) -> None:
    append_heldout(tmp_path, "joint", "joint", {"q": False})
    append_heldout(tmp_path, "joint", "joint", {"q": True})
    with (tmp_path / "heldout.jsonl").open("a") as file:
        file.write('{"stage": "jo')
    assert [row.correct for row in read_heldout(tmp_path)] == [{"q": True}]
