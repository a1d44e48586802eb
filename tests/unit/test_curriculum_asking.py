"""What is asked within a phase: shares are kept, what teaches nothing makes room, and a restored state goes on exactly."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curriculum.config import PhaseConfig, learning_rate_at
from curriculum.difficulty import Band, QuestionPool, Record
from curriculum.mixing import Turns
from curriculum.phase_parts import LengthSchedule, Sampling

PHASE = {"name": "p", "mixture": {"world/joint": 1.0}, "reward": "r", "learning_rate": 1e-4}


@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=8), turns=st.integers(1, 200))
def test_nobody_is_a_turn_away_from_its_share(weights: list[float], turns: int) -> None:
    wheel, taken = Turns(), Counter[str]()
    shares = {f"n{i}": weight for i, weight in enumerate(weights)}
    for turn in range(1, turns + 1):
        taken[wheel.next("w", shares)] += 1
        for name, weight in shares.items():
            assert abs(taken[name] - turn * weight / sum(weights)) < 1 + 1e-6


def test_a_name_without_weight_never_has_a_turn_and_wheels_do_not_mix() -> None:
    turns = Turns()
    assert {turns.next("a", {"x": 1, "y": 0}) for _ in range(10)} == {"x"}
    assert turns.next("b", {"x": 1, "y": 1.01}) == "y"
    with pytest.raises(ValueError, match="no name has a weight above 0"):
        turns.next("c", {"x": 0})


def drive(pool: QuestionPool, rate: dict[str, float], draws: range, fresh: int, seed: int) -> tuple[list[str], int]:
    """Draws, answers each question at its own rate, and tells the pool; the results depend on the draw's number alone."""
    asked: list[str] = []
    names = iter(range(fresh, 10**9))
    taken = 0

    def next_name() -> str:
        nonlocal taken
        taken += 1
        return f"q{next(names)}"

    for draw in draws:
        question = pool.next(next_name)
        asked.append(question)
        rng = random.Random(f"{seed}/{draw}")
        p = rate.setdefault(question, random.Random(question).choice((0.0, 0.1, 0.5, 0.9, 1.0)))
        pool.observe(question, sum(rng.random() < p for _ in range(8)), 8)
    return asked, fresh + taken


@settings(max_examples=20, deadline=None)
@given(draws=st.integers(0, 120), more=st.integers(1, 60), seed=st.integers(0, 9), retry=st.sampled_from([0.0, 0.1, 0.5]))
def test_a_restored_pool_goes_on_exactly(draws: int, more: int, seed: int, retry: float) -> None:
    config = Sampling(order="learnability", pool=12, retry=retry, retire_after=8)
    straight = QuestionPool(config, "s")
    asked, fresh = drive(straight, {}, range(draws), 0, seed)
    restored = QuestionPool.restored(json.loads(json.dumps(straight.snapshot())), "s")
    assert drive(restored, {}, range(draws, draws + more), fresh, seed) == drive(
        straight, {}, range(draws, draws + more), fresh, seed
    )
    assert restored.snapshot() == straight.snapshot()
    assert len(asked) == draws


def test_the_seed_decides_the_draws() -> None:
    config = Sampling(order="learnability", pool=32)
    runs = [drive(QuestionPool(config, seed), {}, range(40), 0, 0)[0] for seed in ("a", "a", "b")]
    assert runs[0] == runs[1] != runs[2]


def test_what_teaches_is_asked_more_and_what_does_not_makes_room() -> None:
    """A third each never, sometimes and always solved: chance alone would ask the middle third 333 times of 1,000."""
    config = Sampling(order="learnability", pool=60, retire_after=16, retry=0.05)
    kinds = (0.0, 0.5, 1.0)
    pool, asked, names = QuestionPool(config, "s"), Counter[float](), iter(range(10**6))
    rng = random.Random(1)
    for _ in range(1000):
        question = pool.next(lambda: f"q{next(names)}")
        p = kinds[int(question[1:]) % 3]
        asked[p] += 1
        pool.observe(question, sum(rng.random() < p for _ in range(8)), 8)
    assert asked[0.5] > 0.6 * 1000
    assert asked[0.0] + asked[1.0] > 100, "fresh and retired questions are still tried"
    bands = pool.bands()
    assert bands["retired"] > 60 / 2
    assert sum(bands.values()) - bands["retired"] <= 60
    assert sum(bands.get(band, 0) for band in ("hard", "middle", "easy")) > 60 / 2


def test_a_question_rests_while_its_results_are_not_in() -> None:
    pool, names = QuestionPool(Sampling(order="learnability", pool=64), "s"), iter(range(10**6))
    asked = [pool.next(lambda: f"q{next(names)}") for _ in range(200)]
    assert all(len(set(asked[i : i + 32])) == 32 for i in range(168))


def test_a_retired_question_that_is_solved_at_last_comes_back() -> None:
    pool = QuestionPool(Sampling(order="learnability", pool=8, retire_after=8, retry=0.5), "s")
    names = iter(range(10**6))
    first = pool.next(lambda: f"q{next(names)}")
    pool.observe(first, 0, 8)
    assert pool.bands() == {"unseen": 7, "retired": 1}
    assert pool.next(lambda: f"q{next(names)}") == first, "every second draw tries a retired one"
    pool.observe(first, 3, 8)
    assert pool.bands() == {"unseen": 8, "middle": 1, "retired": 0}


def test_a_source_that_ends_is_asked_again_and_again() -> None:
    pool, names = QuestionPool(Sampling(order="learnability", pool=8, retire_after=1), "s"), iter("abc")
    for _ in range(20):
        question = pool.next(lambda: next(names, None))
        pool.observe(question, 8, 8)
    assert pool.bands() == {"retired": 3}
    with pytest.raises(ValueError, match="no question at all"):
        QuestionPool(Sampling(order="learnability"), "s").next(lambda: None)


def test_memory_of_retired_questions_is_bounded() -> None:
    pool, names = QuestionPool(Sampling(order="learnability", pool=8, retire_after=1), "s"), iter(range(10**6))
    for _ in range(100):
        pool.observe(pool.next(lambda: f"q{next(names)}"), 0, 8)
    assert pool.bands()["retired"] == 8
    pool.observe("q0", 1, 8)  # forgotten meanwhile: nothing happens
    assert not pool.knows("q0")


@pytest.mark.parametrize(("successes", "n"), [(9, 8), (-1, 8), (0, 0)])
def test_impossible_results_are_refused(successes: int, n: int) -> None:
    pool = QuestionPool(Sampling(order="learnability", pool=8), "s")
    with pytest.raises(ValueError, match="cannot have been right"):
        pool.observe("q", successes, n)


def test_earlier_results_fade() -> None:
    record = Record()
    for _ in range(3):
        record.add(0, 8, 0.5)
    assert (record.band, record.streak) == (Band.NEVER, -24)
    record.add(8, 8, 0.5)
    assert (record.band, record.streak) == (Band.MIDDLE, 8)
    assert record.attempts == 15
    for _ in range(2):
        record.add(8, 8, 0.0)
    assert record.band is Band.ALWAYS


def test_learnability_is_highest_in_the_middle_and_the_unseen_stand_between() -> None:
    def after(successes: int) -> float:
        record = Record()
        record.add(successes, 8, 0.5)
        return record.learnability

    values = [after(successes) for successes in range(9)]
    assert values == values[::-1] and max(values) == values[4]
    assert values[0] < Record().learnability < values[4]


@given(rate=st.floats(1e-8, 1), warmup=st.integers(0, 50), step=st.integers(0, 100))
def test_the_learning_rate_rises_to_its_value_and_stays(rate: float, warmup: int, step: int) -> None:
    phase = PhaseConfig.model_validate(PHASE | {"learning_rate": rate, "warmup_steps": warmup})
    now, then = learning_rate_at(phase, step), learning_rate_at(phase, step + 1)
    assert 0 < now <= then <= rate
    assert (now == rate) == (step + 1 >= warmup)


def test_a_length_falls_or_rises_evenly() -> None:
    schedule = LengthSchedule(start=500, end=1500, steps=4)
    assert [schedule.at(step) for step in (0, 1, 2, 3, 4, 5)] == [500, 750, 1000, 1250, 1500, 1500]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mixture": {"world/joint": -1}}, "greater than or equal to 0"),
        ({"mixture": {"world/joint": float("nan")}}, "finite"),
        ({"kinds": {"number": 0}}, "no weight above 0"),
        ({"kinds": {"essay": 1}}, "'choice', 'number' or 'text'"),
        ({"temperatures": [0.5, 0]}, "greater than 0"),
        ({"length": {"start": 0, "end": 5, "steps": 1}}, "greater than 0"),
        ({"length": {"start": 9, "end": 5, "steps": 1, "modes": {"free": 1}}}, "leave the length schedule out"),
        ({"sampling": {"order": "hardest"}}, "'uniform' or 'learnability'"),
        ({"on_entry": {"old_groups": "keep"}}, "'train' or 'drop'"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PhaseConfig.model_validate(PHASE | change)
