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
        "plateau": {"window": 3, "patience": 1, "min_improvement": 0.15},
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
    decisions = go(control, [0.2, 0.4, 0.6, 0.8, 0.95, 0.3, 0.3, 0.3])
    assert [(step, decision.kind.value, decision.phase, decision.left_by, decision.to) for step, decision in decisions] == [
        (0, "stay", "reasoning", "", "reasoning"), (3, "stay", "reasoning", "", "reasoning"), (6, "stay", "reasoning", "", "reasoning"),
        (9, "stay", "reasoning", "", "reasoning"), (12, "advance", "reasoning", "max_steps", "joint"),
        (12, "stay", "joint", "", "joint"), (15, "stay", "joint", "", "joint"), (18, "stop", "joint", "plateau", ""),
    ]  # fmt: skip
    assert control.finished
    assert decisions[-1][1].evidence["state"] == "flat"
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
            "plateau": {"probe_every": plan[2], "patience": plan[3], "window": 3},
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
    ("rule", "scores", "left"),
    [
        ({"score": 0.8}, [0.8, 0.8, 0.8], (6, "plateau")),
        ({"score": 0.8}, [0.6] * 5, (12, "max_steps")),  # flat, but it is not enough
        ({"score": 0.8, "combine": "any"}, [0.5, 0.7, 0.85], (6, "score")),
        ({"score": 0.8, "combine": "any"}, [0.5, 0.5, 0.5], (6, "plateau")),
        ({"score": 0.8, "plateau": False}, [0.5, 0.5, 0.5, 0.9], (9, "score")),
        ({"plateau": False}, [0.5] * 5, (12, "max_steps")),
    ],
)
def test_the_exit_rule(rule: dict[str, Any], scores: list[float], left: tuple[int, str]) -> None:
    decisions = go(controller(phase("joint", exit=rule)), scores)
    assert [(step, decision.left_by) for step, decision in decisions][-1] == left
    assert decisions[-1][1].kind is DecisionKind.STOP


def test_a_score_to_leave_by_is_reached_by_as_many_probes_as_patience_says() -> None:
    rule = phase("joint", exit={"score": 0.8, "plateau": False}, plateau={"window": 3, "patience": 2})
    decisions = go(controller(rule), [0.5, 0.9, 0.7, 0.9, 0.9])
    assert [(step, decision.left_by) for step, decision in decisions][-2:] == [(9, ""), (12, "max_steps")]
    assert "0.8 was not reached by the last 2 probes" in decisions[-2][1].reason


def test_an_entry_that_is_refused_leads_where_its_rule_says_and_not_for_ever() -> None:
    back = controller(phase("a", max_steps=3), phase("b", max_steps=3, entry={"score": 0.5, "otherwise": "a", "attempts": 2}))
    decisions = go(back, [0.1, 0.1, 0.4, 0.1, 0.1, 0.4, 0.1, 0.1, 0.4, 0.4])
    left = [(step, decision.phase, decision.kind.value, decision.left_by) for step, decision in decisions if decision.left_by]
    assert left == [
        (3, "a", "advance", "max_steps"), (3, "b", "regress", "entry"), (6, "a", "advance", "max_steps"),
        (6, "b", "regress", "entry"), (9, "a", "advance", "max_steps"), (12, "b", "stop", "max_steps"),
    ]  # fmt: skip
    assert "refused 2 times already" in decisions[-2][1].evidence["entry"]
    skipped = go(
        controller(phase("a", entry={"score": 0.5, "otherwise": "c"}), phase("b"), phase("c", max_steps=3)), [0.4, 0.4, 0.4]
    )
    assert [(decision.phase, decision.kind.value, decision.to) for _, decision in skipped] == [
        ("a", "advance", "c"), ("c", "stay", "c"), ("c", "stop", ""),
    ]  # fmt: skip
    stopped = go(controller(phase("a", entry={"score": 0.5, "otherwise": "stop"})), [0.4])
    assert [(decision.kind.value, decision.left_by) for _, decision in stopped] == [("stop", "entry")]
    assert stopped[0][1].reason == "entered with 0.400, and it requires 0.5: stop"


def forgetting(**rule: Any) -> Controller:
    """At step 6, in its second phase, where a probe is due; the first was left with 0.9."""
    control = controller(phase("a", max_steps=3), phase("b", regress={"max_drop": 0.1, "patience": 2} | rule, max_steps=90))
    go(control, [0.9, 0.9, 0.5])
    return control


def test_an_earlier_phase_that_is_forgotten_comes_again_when_probes_confirm_it() -> None:
    control = forgetting()
    assert [watched.name for watched in control.watched] == ["a"]
    seen = []
    for step, score in [(6, 0.7), (9, 0.85), (12, 0.7), (15, 0.75)]:
        if step > 6:
            for number in range(step - 2, step + 1):
                control.observe(number, 0.5)
        seen.append(control.probe(step, 0.5 + step / 100, 200, earlier={"a": score}))
    assert [decision.kind.value for decision in seen] == ["stay", "stay", "stay", "regress"]
    assert (seen[-1].left_by, seen[-1].to, control.phase.name) == ("forgetting", "a", "a")
    assert seen[-1].reason == "a fell to 0.750 from the 0.900 that it was left with, by more than 0.1, in 2 probes in a row"
    assert seen[-1].evidence["drops"] == {"a": pytest.approx(0.15)}
    go(control, [0.8, 0.8, 0.5], step=15)  # a again, and b's entry
    assert control.phase.name == "b"
    for step in (21, 24, 27):
        assert control.probe(step, step / 30, 200, earlier={"a": 0.1}).kind is DecisionKind.STAY, "it went back once"
        for number in range(step + 1, step + 4):
            control.observe(number, 0.5)


@pytest.mark.parametrize(("earlier", "words"), [({}, "was not told"), ({"a": math.nan}, "is nan")])
def test_a_watched_score_that_is_missing_is_named(earlier: dict[str, float], words: str) -> None:
    control = forgetting()
    before = control.snapshot()
    with pytest.raises(ValueError, match=f"phase 'b': probe at step 6: regress watches 'a', whose score {words}"):
        control.probe(6, 0.5, 200, earlier=earlier)
    assert control.snapshot() == before


def test_a_word_from_outside_is_obeyed_at_once() -> None:
    control = controller(phase("a"), phase("b"), phase("c"))
    advanced = control.override("advance", 0)
    assert (advanced.kind, advanced.phase, advanced.left_by, advanced.to) == (DecisionKind.ADVANCE, "a", "override", "b")
    back = control.override("back", 0)
    assert (back.kind, back.to, control.phase.name) == (DecisionKind.REGRESS, "a", "a")
    assert control.override("back", 0).reason == "asked to go back, but 'a' is the first phase"
    for _ in range(3):
        last = control.override("advance", 0)
    assert (last.kind, last.left_by, control.finished) == (DecisionKind.STOP, "override", True)
    with pytest.raises(ValueError, match="'on' is no command; there are advance, hold, back, auto"):
        controller(phase("a")).override("on", 0)  # type: ignore[arg-type]


def test_a_held_phase_outlasts_its_rules_until_it_is_released() -> None:
    control = controller(phase("a", max_steps=4))
    control.override("hold", 0)
    probed = []
    for step in range(1, 12):
        control.observe(step, 0.5)
        if control.should_probe():
            probed.append((step, control.probe(step, 0.5, 200).kind.value))
    assert probed == [(3, "stay"), (6, "stay"), (9, "stay")]
    restored = controller(phase("a", max_steps=4))
    restored.restore(json.loads(json.dumps(control.snapshot())))
    assert restored.held
    restored.override("auto", 11)
    assert restored.should_probe()
    assert restored.probe(11, 0.5, 200).left_by == "max_steps"


COLLAPSE = {
    "signals": {"reward": {"metric": "reward/mean", "min_change": 0.3, "relative": True}}, "signals_to_collapse": 1, "patience": 2,
    "max_rollbacks": 2, "learning_rate_factor": 0.5,
}  # fmt: skip


def collapse(control: Controller, step: int) -> tuple[int, Decision]:
    """Trains well for a while, then not at all, until something is decided."""
    for number in range(1, 60):
        reward = 0.8 if number < 20 else 0.1
        decision = control.observe(step + number, reward, {"reward/mean": reward + 0.01 * (number % 2)})
        if decision is not None:
            return step + number, decision
    raise AssertionError("no collapse was found")


def test_a_collapse_rolls_back_with_a_lower_rate_and_at_last_ends_the_run() -> None:
    plan = {"phases": [phase("a", max_steps=500)], "collapse": COLLAPSE}
    control = Controller(CurriculumConfig.model_validate(plan))
    for step in range(1, 11):
        assert control.observe(step, 0.8, {"reward/mean": 0.8}) is None
    kept = json.loads(json.dumps(control.snapshot()))
    for rollbacks, factor in ((1, 0.5), (2, 0.25)):
        _, decision = collapse(control, 10)
        assert (decision.kind, decision.left_by, decision.phase) == (DecisionKind.ROLL_BACK, "", "a")
        assert decision.evidence["since"] > 10
        control.rolled_back(kept)
        assert (control.steps_in_phase, control.learning_rate_factor) == (10, factor)
        assert control.snapshot()["rollbacks"] == {"a": rollbacks}
    _, last = collapse(control, 10)
    assert (last.kind, last.left_by, control.finished) == (DecisionKind.STOP, "collapse", True)
    assert last.reason.endswith("rolled back 2 times already")


def test_without_metrics_or_switched_off_nothing_collapses() -> None:
    off = Controller(CurriculumConfig.model_validate({"phases": [phase("a", max_steps=500)], "collapse": {"enabled": False}}))
    for step in range(1, 60):
        assert off.observe(step, 0.8 if step < 20 else 0.1, {"reward/mean": 0.8 if step < 20 else 0.1}) is None
        assert off.health is None


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([phase("a"), phase("a")], "unique"),
        ([phase("a", min_steps=9, max_steps=3)], "min_steps 9 is above max_steps 3"),
        ([phase("a", mixture={})], "at least one task source"),
        ([phase("a", mixture={"world": 0})], "at least one task source"),
        ([phase("a", rewards="x")], "rewards"),
        ([], "phases"),
        ([phase("stop")], "no phase may be called 'stop'"),
        ([phase("a", entry={"score": 0.5, "otherwise": "b"})], "entry.otherwise names 'b'; there are a, and stop"),
        ([phase("a", entry={"score": 0.5, "otherwise": "a"})], "leads back to itself"),
        (
            [phase("a", entry={"score": 0.5, "otherwise": "b"}), phase("b", entry={"score": 0.5, "otherwise": "a"})],
            "entry rules go in a circle: a → b → a",
        ),
        ([phase("a", entry={"score": 1.5, "otherwise": "stop"})], "less than or equal to 1"),
        ([phase("a", regress={}), phase("b")], "regress has no earlier phase"),
        ([phase("a"), phase("b", regress={"phases": ["c"]}), phase("c")], "regress names 'c', which is none of the earlier a"),
        ([phase("a", exit={"plateau": False, "combine": "any"})], "exit combines any of nothing"),
        ([phase("a", exit={"score": 1.1})], "less than or equal to 1"),
    ],
)
def test_a_wrong_plan_is_refused(phases: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        controller(*phases)


def test_the_curriculum_imports_nothing_heavy() -> None:
    code = "import sys, curriculum.controller; print([m for m in ('torch', 'ray', 'vllm', 'numpy', 'pyarrow') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
