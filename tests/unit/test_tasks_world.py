"""The medical world: certain answers, contradicting evidence, held-out names, the same for ever from one seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.answers import is_correct
from tasks.config import WorldConfig
from tasks.prompting import question_prompt, render_documents, strip_tags
from tasks.questions import AnswerKind, Document, Question
from tasks.skills import classify
from tasks.teacher import demonstrate, drill
from tasks.vocabulary import UNKNOWN, build_tokenizer, names, vocabulary
from tasks.world import SOURCES, Universe, World

CONFIG = WorldConfig(training_worlds=2)


@pytest.fixture(scope="module")
def universe() -> Universe:
    return Universe.build(CONFIG)


def exact_search(world: World):  # type: ignore[no-untyped-def]
    def search(collection: str, query: str) -> list[Document]:
        relation, subject = query.split()
        return list(world.facts[relation, subject].documents)

    return search


def test_held_out_names_are_unseen_combinations_of_seen_syllables(universe: Universe) -> None:
    trained = {name for world in universe.training for group in world.entities.values() for name in group}
    held = {name for world in universe.held_out.values() for group in world.entities.values() for name in group}
    assert not trained & held
    assert {name[:2] for name in held} <= {name[:2] for name in names(held_out=False, share=CONFIG.held_out_share)}
    assert {name[2:] for name in held} <= {name[2:] for name in names(held_out=False, share=CONFIG.held_out_share)}


def test_the_worlds_that_decide_and_report_share_no_facts(universe: Universe) -> None:
    probe, test = universe.held_out["probe"], universe.held_out["test"]
    shared = [key for key in probe.facts.keys() & test.facts.keys() if probe.facts[key].object == test.facts[key].object]
    assert len(shared) < 0.05 * len(probe.facts)
    assert not {d.id for d in probe.documents} & {d.id for d in test.documents}


def test_the_strongest_document_tells_the_truth_and_most_weaker_ones_contradict_it(universe: Universe) -> None:
    agreeing = contradicting = 0
    for fact in universe.training[0].facts.values():
        levels = [document.evidence_level for document in fact.documents]
        assert levels == sorted(levels)
        assert len(set(levels)) == len(levels)
        assert fact.documents[0].text.split()[-2] == fact.object
        for weaker in fact.documents[1:]:
            agrees = weaker.text.split()[-2] == fact.object
            agreeing, contradicting = agreeing + agrees, contradicting + (not agrees)
    assert 0.05 < agreeing / (agreeing + contradicting) < 0.25


def test_document_ids_say_nothing_about_evidence(universe: Universe) -> None:
    documents = universe.training[0].documents
    half = len(documents) // 2
    means = [sum(d.evidence_level or 0 for d in part) / len(part) for part in (documents[:half], documents[half:])]
    assert abs(means[0] - means[1]) < 0.35


@settings(max_examples=60)
@given(source=st.sampled_from(sorted(SOURCES)), index=st.integers(0, 10**6), number=st.integers(0, 1))
def test_every_question_is_repeatable_answerable_and_readable(source: str, index: int, number: int) -> None:
    world = World(f"train-{number}", CONFIG, held_out=False)
    question = world.question(source, index)
    assert question == world.question(source, index)
    facts = [next(f for f in world.facts.values() if f.documents[0].id == gold) for gold in question.gold_documents]
    answer = facts[-1].object
    assert facts[0].subject in question.text
    assert (answer not in question.text) or question.kind is AnswerKind.NUMBER
    if question.kind is AnswerKind.CHOICE:
        assert question.options[question.gold] == answer
        assert len(set(question.options.values())) == 4
    elif question.kind is AnswerKind.NUMBER:
        assert float(question.gold) % int(answer) == 0
    else:
        assert question.gold == answer
    if SOURCES[source].with_context:
        assert set(question.gold_documents) <= {document.id for document in question.context}
    tokenizer = build_tokenizer()
    ids = tokenizer.encode(question_prompt(question))
    assert tokenizer.convert_tokens_to_ids(UNKNOWN) not in ids
    assert tokenizer.decode(ids) == question_prompt(question)


def test_questions_are_found_again_by_their_id(universe: Universe) -> None:
    question = universe.training_question("world/joint", 7)
    assert universe.question(question.id) == question


def test_held_out_questions_all_differ(universe: Universe) -> None:
    questions = universe.held_out["test"].questions("world/joint", 300)
    assert len({question_prompt(question) for question in questions}) == 300


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_teacher_episodes_are_right_in_form_and_imperfect_on_purpose(universe: Universe, source: str) -> None:
    world, rng, right = universe.training[0], random.Random(0), 0
    for index in range(200):
        question = world.question(source, index)
        text = demonstrate(world, question, rng, exact_search(world)).text
        assert text.startswith("<think>")
        assert text.count("</think> <answer>") == 1
        assert text.endswith("</answer> <eos>")
        assert ("<search>" in text) == (not question.context)
        answer = text.split("<answer> ")[1].split(" </answer>")[0]
        right += is_correct(question, answer)
    assert 0.15 < right / 200 < 0.8


def test_drills_test_every_skill() -> None:
    universe, tokenizer, rng = Universe.build(CONFIG), build_tokenizer(), random.Random(0)
    found: set[str | None] = set()
    for _ in range(20):
        found |= set(classify(tokenizer.tokenize(drill(universe.training[0], rng).text)))
    assert {"level", "object_first", "object_second", "dose", "option_second", "letter"} <= found


def test_vocabulary_has_no_doubles() -> None:
    assert len(set(vocabulary())) == len(vocabulary())


@given(
    st.lists(st.sampled_from(["<search>", "</search>", "<doc", "ument>", "a", " ", "</", "think>"]), max_size=30).map("".join)
)
def test_documents_cannot_smuggle_tags(text: str) -> None:
    inner = render_documents([Document(id="d", text=text)]).removeprefix("<document> ").removesuffix(" </document>")
    assert inner == strip_tags(text)
    assert not any(tag in inner for tag in ("<search>", "</search>", "<document>", "</document>", "<think>", "</think>"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "choice", "gold": "C", "options": {"A": "x", "B": "y"}}, "not among the options"),
        ({"kind": "choice", "gold": "Z", "options": {"Z": "x"}}, "must be A to N"),
        ({"kind": "number", "gold": "3", "lower": 4, "upper": 2}, "above the upper limit"),
    ],
)
def test_impossible_questions_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Question.model_validate({"id": "q", "text": "?", **fields})
