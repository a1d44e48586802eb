"""The phases' controller: every phase is left exactly once, for a reason, within its bounds, and a resume changes nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curriculum.config import CurriculumConfig
from curriculum.controller import Controller, Decision, DecisionKind


def phase(name: str, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "mixture": {"world": 1},
        "reward": "full",
        "learning_rate": 1e-4,
        "min_steps": 3,
        "max_steps": 12,
        **settings,
    }


def controller(*phases: dict[str, Any]) -> Controller:
    return Controller(CurriculumConfig.model_validate({"phases": list(phases)}))


def go(control: Controller, scores: list[float], step: int = 0) -> list[tuple[int, Decision]]:
    """Runs until the scores are used up or the curriculum stops, as the run loop does."""
    decisions = []
    queue = list(scores)
    while not control.finished:
        if control.should_probe():
            if not queue:
                break
            decisions.append((step, control.probe(step, queue.pop(0), n=200)))
            continue
        step += 1
        control.observe(step, training_reward=0.5)
    return decisions


def test_a_plateau_leads_through_the_phases_to_the_end() -> None:
    control = controller(phase("reasoning"), phase("joint"))
    decisions = go(control, [0.5, 0.8, 0.8, 0.8, 0.8, 0.3, 0.3, 0.3, 0.3])
    assert [(step, decision.kind.value, decision.phase, decision.left_by) for step, decision in decisions] == [
        (0, "stay", "reasoning", ""), (3, "stay", "reasoning", ""), (6, "stay", "reasoning", ""), (9, "stay", "reasoning", ""),
        (12, "advance", "reasoning", "max_steps"), (12, "stay", "joint", ""), (15, "stay", "joint", ""), (18, "stay", "joint", ""),
        (21, "stop", "joint", "plateau"),
    ]  # fmt: skip
    assert control.finished
    assert decisions[-1][1].evidence["best_before"] == 0.3
    assert decisions[-1][1].evidence["mean_training_reward"] == 0.5


def test_a_plateau_before_min_steps_waits() -> None:
    decisions = go(controller(phase("joint", min_steps=12, max_steps=90)), [0.5] * 9)
    assert [decision.kind.value for _, decision in decisions] == ["stay"] * 4 + ["stop"]
    assert decisions[3][1].reason.endswith("the phase takes at least 12 steps")
    assert decisions[-1][1].left_by == "plateau"


def test_max_steps_is_probed_even_off_the_rhythm() -> None:
    decisions = go(controller(phase("joint", max_steps=5, min_steps=1)), [0.1, 0.2, 0.3, 0.4])
    assert [(step, decision.left_by) for step, decision in decisions] == [(0, ""), (3, ""), (5, "max_steps")]


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused_by_name(score: float) -> None:
    control = controller(phase("joint"))
    before = control.snapshot()
    with pytest.raises(ValueError, match=r"phase 'joint': probe at step 0: the score is (nan|inf)"):
        control.probe(0, score, n=200)
    assert control.snapshot() == before
    with pytest.raises(ValueError, match="phase 'joint': the training reward is"):
        control.observe(1, score)
    assert control.snapshot() == before


def test_after_the_end_nothing_goes_on() -> None:
    control = controller(phase("joint", min_steps=1, max_steps=1))
    go(control, [0.1, 0.2])
    assert control.finished
    assert not control.should_probe()
    with pytest.raises(ValueError, match="after the last phase 'joint' was left"):
        control.observe(9, 0.5)
    with pytest.raises(ValueError, match="after the last phase"):
        control.probe(9, 0.5, n=1)


def test_steps_only_grow() -> None:
    control = controller(phase("joint"))
    control.observe(4, 0.5)
    with pytest.raises(ValueError, match="last one observed was 4"):
        control.observe(4, 0.5)


def test_a_snapshot_of_a_phase_that_is_gone_is_refused() -> None:
    snapshot = controller(phase("old")).snapshot()
    with pytest.raises(ValueError, match="is in phase 'old'; the configuration has new"):
        controller(phase("new")).restore(snapshot)


PLANS = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 12), st.integers(1, 5), st.integers(1, 4)).map(
        lambda plan: {
            "min_steps": plan[0],
            "max_steps": plan[0] + plan[1],
            "plateau": {"probe_every": plan[2], "patience": plan[3]},
        }
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(PLANS, st.lists(st.floats(0, 1), min_size=90, max_size=90), st.integers(0, 30))
def test_any_curve_leaves_every_phase_once_within_its_bounds(
    plans: list[dict[str, Any]], scores: list[float], cut: int
) -> None:
    phases = [phase(f"p{i}", **plan) for i, plan in enumerate(plans)]
    control = controller(*phases)
    decisions = go(control, scores)
    assert control.finished
    left = [(step, decision) for step, decision in decisions if decision.kind is not DecisionKind.STAY]
    assert [decision.phase for _, decision in left] == [f"p{i}" for i in range(len(phases))]
    assert [decision.kind for _, decision in left] == [DecisionKind.ADVANCE] * (len(phases) - 1) + [DecisionKind.STOP]
    for (step, decision), (begun, _), plan in zip(left, [(0, None), *left], plans, strict=False):
        assert plan["min_steps"] <= step - begun == decision.evidence["steps_in_phase"] <= plan["max_steps"]
        assert decision.left_by == "plateau" or step - begun == plan["max_steps"]
    entries = [step for step, decision in decisions if decision.evidence["steps_in_phase"] == 0]
    assert entries == [0, *(step for step, _ in left[:-1])], "every phase is probed once at its entry"

    # The same run, interrupted after `cut` probes and restored from JSON, decides the same.
    first = controller(*phases)
    before = go(first, scores[:cut])
    second = controller(*phases)
    second.restore(json.loads(json.dumps(first.snapshot())))
    step = max(first.snapshot()["last_step"], 0)
    assert before + go(second, scores[cut:], step) == decisions


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([phase("a"), phase("a")], "unique"),
        ([phase("a", min_steps=9, max_steps=3)], "min_steps 9 is above max_steps 3"),
        ([phase("a", mixture={})], "at least one task source"),
        ([phase("a", rewards="x")], "rewards"),
        ([], "phases"),
    ],
)
def test_a_wrong_plan_is_refused(phases: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        controller(*phases)


def test_the_curriculum_imports_nothing_heavy() -> None:
    code = "import sys, curriculum.controller; print([m for m in ('torch', 'ray', 'vllm', 'numpy', 'pyarrow') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
