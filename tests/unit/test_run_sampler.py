"""The run's sampler on the real world: shares, kinds, lengths, replay, and a resume that goes on exactly."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.config import PhaseConfig
from medr3.errors import UserError
from medr3.evaluation.leakage import refuse_leaks
from medr3.phase_questions import held_out_questions
from medr3.run.sampler import QuestionSampler
from tasks.config import WorldConfig
from tasks.prompting import question_prompt
from tasks.questions import without_length
from tasks.world import SOURCES, Universe, World

CONFIG = WorldConfig(training_worlds=2)


@cache
def universe() -> Universe:
    return Universe.build(CONFIG)


def phase(name: str, source: str, **settings: Any) -> PhaseConfig:
    return PhaseConfig.model_validate({"name": name, "mixture": {source: 1}, "reward": "r", "learning_rate": 1e-4, **settings})


LENGTH = {"start": 900, "end": 300, "steps": 6, "modes": {"exact": 1, "at_most": 1, "free": 2}}
PHASES = [
    phase("reasoning", "world/reasoning", kinds={"choice": 2, "number": 1}, length=LENGTH),
    phase("retrieval", "world/retrieval", sampling={"order": "learnability", "pool": 16, "retire_after": 8}, replay=0.25),
    phase("joint", "world/joint", mixture={"world/joint": 3, "world/retrieval": 1}, replay=0.4, specialties={"safety": 1, "dosing": 1}),
]  # fmt: skip


def sampler(seed: int = 0) -> QuestionSampler:
    return QuestionSampler(universe(), seed)


def play(of: QuestionSampler, draws: range) -> list[str]:
    """Some draws in each phase, every second one with its results."""
    ids = []
    for draw in draws:
        question = of.next(PHASES, min(draw // 15, 2), draw % 15)
        ids.append(question.id)
        if draw % 2:
            of.observe(question.id, random.Random(draw).randint(0, 8), 8)
    return ids


@settings(max_examples=15, deadline=None)
@given(draws=st.integers(1, 60), cut=st.integers(0, 60), seed=st.integers(0, 3))
def test_a_restored_sampler_goes_on_exactly(draws: int, cut: int, seed: int) -> None:
    cut = min(cut, draws)
    straight, first, second = sampler(seed), sampler(seed), sampler(seed)
    expected = play(straight, range(draws))
    assert play(first, range(cut)) == expected[:cut]
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert play(second, range(cut, draws)) == expected[cut:]
    assert second.snapshot() == straight.snapshot()


def test_results_that_come_after_a_resume_count_before_their_pool_is_asked_again() -> None:
    first = sampler()
    question = first.next(PHASES, 1)
    second = sampler()
    second.restore(json.loads(json.dumps(first.snapshot())))
    for each in (first, second):
        each.observe(question.id, 0, 8)
    assert second.snapshot() == first.snapshot()
    assert (second.bands("retrieval")["retired"], second.bands("reasoning")) == (1, {})


def test_a_batch_is_mixed_as_the_weights_say() -> None:
    drawn = sampler()
    phases = [
        phase("a", "world/reasoning"),
        phase("b", "world/joint", mixture={"world/joint": 3, "world/retrieval": 1}, replay=0.2),
    ]
    for _ in range(5):
        sources = Counter(drawn.next(phases, 1).source for _ in range(20))
        assert sources == {"world/reasoning": 4, "world/joint": 12, "world/retrieval": 4}


def test_kinds_and_specialties_are_mixed_where_a_source_has_them() -> None:
    drawn = sampler()
    kinds = Counter(drawn.next(PHASES, 0).kind.value for _ in range(30))
    assert kinds == {"choice": 20, "number": 10}
    asked = [drawn.next([PHASES[2]], 0) for _ in range(40)]
    assert Counter(question.specialty for question in asked) == {"safety": 20, "dosing": 20}
    both = phase("c", "world/joint", kinds={"number": 1, "text": 1}, specialties={"safety": 1, "dosing": 1})
    pairs = Counter((q.kind.value, q.specialty) for q in (drawn.next([both], 0) for _ in range(20)))
    assert pairs == {("number", "dosing"): 10, ("text", "safety"): 10}, "a number is always a dose"


def test_what_a_source_offers_is_what_it_asks() -> None:
    for name, source in SOURCES.items():
        asked = [universe().training_question(name, index) for index in range(300)]
        assert {(question.kind.value, question.specialty) for question in asked} == source.offers
        assert {question.hops for question in asked} == source.hops.keys()


def test_uniform_sampling_never_repeats_a_question() -> None:
    drawn = sampler()
    ids = [drawn.next(PHASES[:1], 0).id for _ in range(200)]
    assert len({without_length(name)[0] for name in ids}) == 200


def test_the_length_asked_for_follows_the_schedule_and_comes_back_from_the_id() -> None:
    drawn = sampler()
    asked = [drawn.next(PHASES, 0, step) for step in (0, 3, 6, 90) for _ in range(4)]
    assert [question.length.tokens for question in asked if question.length] == [900, 900, 600, 600, 300, 300, 300, 300]
    assert Counter(question.length.mode if question.length else "free" for question in asked) == {
        "exact": 4,
        "at_most": 4,
        "free": 8,
    }
    for question in asked:
        assert universe().question(question.id) == question
        assert ("Think for" in question_prompt(question)) == (question.length is not None)
    replayed = [question for question in (drawn.next(PHASES, 1, 0) for _ in range(60)) if question.length]
    assert {question.length.tokens for question in replayed if question.length} == {300}, "as its own phase ended"


def test_held_out_worlds_share_nothing_with_training() -> None:
    refuse_leaks(universe())


def test_a_held_out_world_of_training_names_is_refused() -> None:
    leaking = World("probe", CONFIG, held_out=False)
    with pytest.raises(UserError, match=r"held-out world 'probe' shares '[a-z]+', .* and [0-9]+ more with training"):
        refuse_leaks(replace(universe(), held_out={**universe().held_out, "probe": leaking}))


def test_a_held_out_world_of_a_training_collection_is_refused() -> None:
    leaking = World("train-1", CONFIG, held_out=True)
    with pytest.raises(UserError, match="held-out world 'test' shares 'train-1'"):
        refuse_leaks(replace(universe(), held_out={**universe().held_out, "test": leaking}))


def test_held_out_questions_are_mixed_as_the_phase_mixes_its_own_and_differ() -> None:
    world = universe().held_out["test"]
    asked = phase("p", "world/joint", mixture={"world/joint": 3, "world/reasoning": 1}, kinds={"number": 1, "text": 3},
                  length={"start": 90, "end": 30, "steps": 10, "modes": {"exact": 1, "free": 1}})  # fmt: skip
    found = held_out_questions(world, asked, 80)
    assert Counter(question.source for question in found) == {"world/joint": 60, "world/reasoning": 20}
    assert Counter(question.kind.value for question in found) == {"number": 20, "text": 60}
    assert Counter(question.length and question.length.tokens for question in found) == {None: 40, 30: 40}, (
        "as the last steps ask"
    )
    assert len({question.id for question in found}) == 80
    plain = phase("p", "world/joint")
    assert [question.id for question in held_out_questions(world, plain, 20)] == [
        question.id for question in world.questions("world/joint", 20)
    ], "a phase that leaves all open asks the first questions there are"
