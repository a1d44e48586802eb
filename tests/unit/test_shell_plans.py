"""Plans and bases: included by name, overridden as any setting, whole when resolved; what does not fit is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from medr3.config import RunConfig, load
from medr3.errors import UserError
from medr3.including import PLANS, shipped_plans

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
REAL_MODEL = ["model.path=models/Qwen2.5-7B"]


def shipped(path: Path) -> list[Path]:
    return sorted(path.glob("*.yaml"))


@pytest.mark.parametrize("path", [DEMO, *shipped(ROOT / "configs" / "recipes")], ids=lambda path: path.stem)
def test_every_shipped_configuration_is_whole_when_resolved(path: Path) -> None:
    resolved = yaml.safe_dump(load(path, []).model_dump(mode="json"))
    again = yaml.safe_load(resolved)
    assert "plan" not in again["curriculum"] and "base" not in again
    assert RunConfig.model_validate(again).hash() == load(path, []).hash()


@pytest.mark.parametrize("name", shipped_plans())
def test_every_plan_can_take_the_place_of_the_demos(name: str) -> None:
    for override in (f"curriculum={name}", f"curriculum.plan={name}", f"curriculum={{plan: {name}}}"):
        config = load(DEMO, ["curriculum.phases.0.max_steps=7", override, *REAL_MODEL])
        whole = yaml.safe_load((PLANS / f"{name}.yaml").read_text())["phases"]
        assert [phase.name for phase in config.curriculum.phases] == [phase["name"] for phase in whole]
        assert config.curriculum.phases[0].max_steps == 7, "an override goes before the plan"
        for phase in config.curriculum.phases:
            config.phase_budget(phase)


def test_a_plan_may_be_included_with_further_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {path: m}\ncurriculum: {plan: med_r3, collapse: {max_rollbacks: 0}}\n")
    curriculum = load(file, ["curriculum.phases.joint.top_k=8"]).curriculum
    assert (curriculum.collapse.max_rollbacks, curriculum.phases[2].top_k, len(curriculum.phases)) == (0, 8, 3)


def test_a_base_is_changed_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("run: {name: a, seed: 3}\nrollout: {num_engines: 2}\ncurriculum: med_r3\n")
    (tmp_path / "above.yaml").write_text("base: below.yaml\nrun: {name: b}\ncurriculum: {plan: r3_rag}\n")
    config = load(tmp_path / "above.yaml", ["rollout.num_engines=4"])
    assert (config.run.name, config.run.seed, config.rollout.num_engines) == ("b", 3, 4)
    assert [phase.name for phase in config.curriculum.phases] == ["process"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("curriculum: med_r4", "no plan 'med_r4' among demo, .*: did you mean med_r3"),
        ("curriculum: {plan: ../demo}", "no plan '../demo'"),
        ("curriculum: {plan: [demo]}", r"no plan \['demo'\]"),
        ("curriculum: {plan: med_r3, phases: []}", "phases of its own: leave one out, or write curriculum=med_r3"),
        ("base: nowhere.yaml", "nowhere.yaml: No such file"),
        ("base: 3", "must name another configuration"),
        ("base: mine.yaml", "leads back to itself: mine.yaml → mine.yaml"),
        ("- a", "must hold settings by name"),
        ("run: {", "not valid YAML"),
    ],
)
def test_what_cannot_be_included_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load(file, [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["curriculum.phases.joint.mixture={world/join: 1}"], "phase 'joint' mixes unknown task source 'world/join'"),
        (
            ["curriculum.phases.joint.specialties={genetics: 1}"],
            "phase 'joint' asks world/joint for kinds and specialties that it does not have; it has choice of pharmacology",
        ),
        (["curriculum.phases.joint.specialties={safety: 1, savety: 1}"], "specialty 'savety', but .*: did you mean safety"),
        (["curriculum.phases.joint.kinds={number: 1}", "curriculum.phases.joint.specialties={safety: 1}"], "does not have"),
        (["curriculum=med_u1"], "phase 'unified' asks for a length, in words that the tiny model does not know"),
        (
            ["curriculum.phases.joint.max_response_tokens=512"],
            "phase 'joint' has max_response_tokens 512, which leaves no room",
        ),
        (["budget.answer_tokens=50", "curriculum.phases.joint.max_response_tokens=40"], "phase 'joint' does not fit `budget`"),
        (
            ["rollout.group_size=3", "curriculum.phases.joint.temperatures=[0.1, 0.4, 0.7, 1.0]"],
            "4 temperatures, but a group has 3",
        ),
        (["curriculum.phases.joint.on_entry={reference: refresh}"], "phase 'joint' refreshes a reference policy"),
    ],
)
def test_phases_that_do_not_fit_the_rest_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        load(DEMO, overrides)


def test_a_phase_says_its_bounds_and_the_run_the_others() -> None:
    config = load(
        DEMO,
        [
            "budget.max_passages=10",
            "budget.answer_tokens=8",
            "curriculum.phases.joint.top_k=7",
            "curriculum.phases.joint.retrieval_mode=lexical",
            "curriculum.phases.joint.regenerations=3",
        ],
    )
    reasoning, _, joint = (config.phase_budget(phase) for phase in config.curriculum.phases)
    assert (joint.top_k, joint.retrieval_mode, joint.regenerations, joint.max_passages, joint.answer_tokens) == (
        7,
        "lexical",
        3,
        10,
        8,
    )
    assert (reasoning.top_k, reasoning.retrieval_mode, reasoning.retrieval) == (3, None, False)
