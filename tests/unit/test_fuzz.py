"""The harness of `make fuzz` for a moment, and every case that failed once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import running
from tests.fuzz.mutation import of_text
from tests.fuzz.running import REGRESSIONS, run_cases, shrink, slug, tried
from tests.fuzz.target import Broken, Target
from tests.fuzz.targets import all_targets

# A vocabulary is trained first, or torch, Ray or a server's libraries are loaded: `make fuzz` tries these.
SLOW_TO_START = ("tokenizer", "retrieval-mcp", "weights-tensors", "phrases-of-relations")
FEW = 3  # cases of each target: that the target works; finding is for `make fuzz`
TARGETS = {slug(target.name): target for target in all_targets()}


def test_names_are_those_of_folders() -> None:
    assert len(TARGETS) == len(all_targets())
    assert {path.name for path in REGRESSIONS.iterdir() if path.is_dir()} <= TARGETS.keys()


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW_TO_START])
def test_samples_and_a_few_cases(name: str) -> None:
    target = TARGETS[name]
    outcomes = [tried(target, sample) for sample in target.samples[:2]]
    assert all(outcome != "failed" for outcome, *_ in outcomes), outcomes
    assert target.samples_refused or all(outcome == "read" for outcome, *_ in outcomes), outcomes
    assert not run_cases(target, seed=1, start=0, count=FEW).failures


@pytest.mark.parametrize(
    "path",
    sorted(path for path in REGRESSIONS.rglob("*") if path.is_file()),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_what_failed_once(path: Path) -> None:
    outcome, _, said = tried(TARGETS[path.parent.name], path.read_bytes())
    assert outcome in ("read", "refused"), said


def trap(case: bytes) -> None:
    if b"BAD" in case:
        raise KeyError("bad")
    if case.startswith(b"no"):
        raise ValueError("no")
    if case.startswith(b"two"):
        raise ValueError("two\nlines")
    if case.startswith(b"slow"):
        while True:
            pass


TRAP = Target("trap", lambda: [b"a sample of words"], trap, of_text, (ValueError,))


def test_what_is_a_failure_and_what_is_not() -> None:
    assert tried(TRAP, b"yes")[0] == "read"
    assert tried(TRAP, b"no")[0] == "refused"
    assert tried(TRAP, b"BAD")[1].startswith("KeyError at test_fuzz.py")
    assert tried(TRAP, b"two")[1].startswith("Broken")


def test_a_case_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CPU_S", 0.1)
    assert tried(TRAP, b"slow")[1].startswith("TooSlow")


def test_a_failure_is_shrunk_to_what_makes_it() -> None:
    case = b"x" * 100 + b"BAD" + b"y" * 100
    assert shrink(TRAP, case, tried(TRAP, case)[1]) == b"BAD"


def test_a_case_follows_from_its_number_alone() -> None:
    assert [TRAP.case(7, n) for n in (3, 4)] == [TRAP.case(7, n) for n in (3, 4)] != [TRAP.case(8, n) for n in (3, 4)]
    assert of_text(random.Random(0), b"abc", [b"abc"]) == of_text(random.Random(0), b"abc", [b"abc"])


def test_a_broken_promise_is_no_refusal() -> None:
    def promise(case: bytes) -> None:
        raise Broken("promise")

    assert tried(Target("t", lambda: [b""], promise, of_text, (AssertionError,)), b"")[0] == "failed"
