"""Questions from a graph: exactly one answer fits, the oracle finds it in the gold documents, and the text gives nothing away."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.atlas.config import AtlasConfig
from tasks.atlas.language import PHRASES, SPECIALTIES
from tasks.atlas.world import Atlas
from tasks.graph.knowledge import KnowledgeGraph, Statement
from tasks.graph.oracle import is_in_question, masked_plan, solve
from tasks.graph.pattern import Blank, Clue, InGraph, Told, TooMany, Vague, answers
from tasks.graph.questions import Draft, QuestionMaker
from tasks.graph.sampling import Bounds, mixed
from tasks.graph.triples import Triple
from tasks.graph.vagueness import vague
from tasks.graph.wording import gives_away, mentions, phrase_of, sentence, statements_in
from tasks.questions import AnswerKind, Document, Question


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas.pair(AtlasConfig(documents=6_000))[0]


@pytest.fixture(scope="module")
def maker(atlas: Atlas) -> QuestionMaker:
    graph, bad = KnowledgeGraph.build(atlas.triples())
    assert not bad
    aliases = {entity.name: (second,) for entity in atlas.entities() if (second := atlas.alias(entity))}
    return QuestionMaker(graph, PHRASES, aliases, atlas.collection)


@pytest.fixture(scope="module")
def documents(atlas: Atlas) -> dict[str, Document]:
    return {document.id: document for document in atlas.documents()}


@pytest.fixture(scope="module")
def drafts(maker: QuestionMaker) -> list[Draft]:
    rng = random.Random(0)
    seeds = maker.graph.rare(below=6)
    pieces = [mixed(maker.graph, rng.choice(seeds), rng, Bounds(2, 5)) for _ in range(150)]
    return [draft for piece in pieces if piece is not None and (draft := maker.draft(piece, rng)) is not None]


def test_the_oracle_answers_every_question_from_its_gold_documents(
    maker: QuestionMaker, drafts: list[Draft], documents: dict[str, Document]
) -> None:
    assert len(drafts) > 60
    for draft in drafts:
        question = maker.question(draft)
        assert solve(question, documents, PHRASES) == question.gold
        assert len(question.gold_documents) == len(question.reference_graphs[0]) == len(question.provenance)


def test_the_oracle_needs_every_document_of_the_chain(
    maker: QuestionMaker, drafts: list[Draft], documents: dict[str, Document]
) -> None:
    for draft in drafts[:40]:
        question = maker.question(draft)
        asked = draft.asked
        last = next(
            name
            for name, clue in zip(question.gold_documents, draft.clues, strict=True)
            if asked in (clue.subject, clue.object)
        )
        emptied = {**documents, last: documents[last].model_copy(update={"text": "Nothing is known."})}
        assert solve(question, emptied, PHRASES) is None
        assert solve(question, {}, PHRASES) is None


def test_no_question_says_its_answer_nor_what_leads_to_it(maker: QuestionMaker, drafts: list[Draft]) -> None:
    for draft in drafts:
        question = maker.question(draft)
        assert not is_in_question(question, maker.common)
        assert not any(mentions(question.text, name) for name in draft.hidden)
        assert all(shown in question.text for shown in draft.shown)


def test_brute_force_finds_the_same_single_answer(maker: QuestionMaker, drafts: list[Draft]) -> None:
    """The semi-join of `answers` against trying every way through the graph."""
    facts = list(maker.graph.statements())

    def fits(clue: Clue, known: dict[Blank, str]) -> list[dict[Blank, str]]:
        found = []
        for fact in facts:
            bound = dict(known)
            for term, value in ((clue.subject, fact.subject), (clue.object, fact.object)):
                if isinstance(term, Blank):
                    bound.setdefault(term, value)
                    if bound[term] != value:
                        break
                elif (term.words if isinstance(term, Vague) else term) != (vague(value) if isinstance(term, Vague) else value):
                    break
            else:
                if fact.relation == clue.relation:
                    found.append(bound)
        return found

    for draft in drafts[:4]:
        ways: list[dict[Blank, str]] = [{}]
        for clue in draft.clues:
            ways = [wider for way in ways for wider in fits(clue, way)]
            if len(ways) > 60:
                break
        else:
            assert {way[draft.asked] for way in ways} == {draft.answer}


def test_questions_are_of_several_hops_all_specialties_and_two_kinds(maker: QuestionMaker, drafts: list[Draft]) -> None:
    questions = [maker.question(draft) for draft in drafts]
    assert min(question.hops for question in questions) >= 2
    assert {question.specialty for question in questions} == set(SPECIALTIES)
    assert {question.kind for question in questions} == {AnswerKind.TEXT, AnswerKind.NUMBER}
    assert Counter(question.source for question in questions).keys() >= {"graph/max_chain", "graph/augmented_chain"}
    assert any(isinstance(clue.object, Vague) for draft in drafts for clue in draft.clues)


def test_an_answer_that_several_fit_is_never_asked() -> None:
    rows = [Triple("anchor", "shows", sign, document=f"d{sign}") for sign in ("fever", "cough")]
    rows += [
        Triple(sign, "hints at", disease, document=f"d{sign}{disease}")
        for sign, disease in product(("fever", "cough"), ("x", "y"))
    ]
    graph, _ = KnowledgeGraph.build(rows)
    maker = QuestionMaker(graph)
    for node in range(len(graph.names)):
        for seed in range(10):
            rng = random.Random(seed)
            piece = mixed(graph, node, rng, Bounds(2, 2))
            draft = piece and maker.draft(piece, rng)
            if draft:
                assert answers(draft.clues, draft.asked, InGraph(graph)) == {draft.answer}


def test_a_blank_without_any_bound_is_refused() -> None:
    with pytest.raises(TooMany):
        answers([Clue(Blank(1), "r", Blank(2))], Blank(2), Told([Statement("a", "r", "b", "d")]))


def test_the_oracle_knows_nothing_that_the_text_does_not_say() -> None:
    graph = ((("Fabry disease", "caused by", "GLA"), ("GLA", "found in", "1967"), ("GLA", "inhibited by", "Lomab")),)
    told = {"d": Document(id="d", text="Fabry disease is caused by GLA.\nGLA is found in 1967.\nGLA is inhibited by Lomab.")}
    question = Question(
        id="q", text="What inhibits the gene of Fabry disease, found in the late 1960s?", kind="text", gold="Lomab",
        reference_graphs=graph, gold_documents=("d", "d", "d"),
    )  # fmt: skip
    assert solve(question, told, {}) == "Lomab"
    told["d"] = Document(id="d", text="Fabry disease, caused by GLA in most; Lomab inhibits it since 1967.")
    claims = {"d": [Statement(*triple, "d") for triple in graph[0]]}
    assert solve(question, told, {}) is None
    assert solve(question, told, {}, claims) == "Lomab"
    told["d"] = Document(id="d", text="Fabry disease, caused by GLA in most, since 1967.")
    assert solve(question, told, {}, claims) is None  # what a model read there does not stand there


def test_masked_plans_show_names_that_the_text_shows() -> None:
    question = Question(
        id="q", text="GLA [2] is inhibited by a certain drug [1]. Name it.", kind="text", gold="Lomab",
        reference_graphs=((("GLA", "inhibited by", "Lomab"),),),
    )  # fmt: skip
    assert masked_plan(question) == ([Clue("GLA", "inhibited by", Blank(1))], Blank(1))


@given(st.floats(-1e300, 1e300) | st.integers(-(10**9), 10**9))
@settings(max_examples=300)
def test_rough_numbers_hold_the_number_they_hide(value: float) -> None:
    rough = vague(str(value))
    if rough.startswith("between"):
        low, high = (float(part) for part in rough.removeprefix("between ").split(" and "))
        assert low - abs(low) * 1e-5 <= value <= high + abs(high) * 1e-5


@given(
    st.sampled_from(["caused_by", "treats", "parent-child", "may treat", "isa"]),
    st.text("abcXY 12", min_size=1),
    st.text("abcXY 12", min_size=1),
)
def test_a_sentence_reads_back_as_its_statement(relation: str, subject: str, object_: str) -> None:
    stated = Statement(subject.strip() or "a", relation, object_.strip() or "b", "d")
    if f" {phrase_of(relation, {})} " not in f" {stated.subject} ":
        assert statements_in(f"Title\n{sentence(stated, {})}\nend", "d", [relation], {}) == [stated]


def test_a_word_of_a_name_gives_it_away_unless_many_names_have_it() -> None:
    common = frozenset({"disease"})
    assert gives_away("the Fabry-like picture", "Fabry disease", common)
    assert gives_away("FABRY  DISEASE?", "Fabry disease", common)
    assert not gives_away("which disease", "Fabry disease", common)
    assert not gives_away("which gene", "IL-6", common)
