"""Is every step worth its search? R3-RAG's process rewards (arXiv 2505.23794) and MedResearcher-R1's quality (arXiv 2508.14880).

A step is one search with the documents that it brought and that no earlier one had. Rel of a step is 0 … 1: a judge's where it
was asked, else by rule, where a step that brings nothing new is worth 0 either way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from rewards.answers import is_correct
from rewards.earned import Earned
from rewards.evidence import Quality, Retrieved, begins_with, quality_table, retrieved
from rewards.extraction import Statement, last_turn, lines_of
from rewards.findings import Findings
from rewards.format import ANSWERED, MALFORMED, is_well_formed
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

PASS_MARK = 0.6  # R3-RAG's: a step whose documents are less relevant earns nothing


class Step(NamedTuple):
    """The searches of one turn, which is one search in whatever the protocol let through."""

    turn: int
    new: tuple[Retrieved, ...]
    relevance: float


def steps(question: Question, episode: Episode, findings: Findings) -> list[Step]:
    """Every search step with its Rel."""
    new: dict[int, list[Retrieved]] = {search.turn: [] for search in episode.searches}
    for document in retrieved(episode):
        new[document.turn].append(document)
    queries = {search.turn: search.query for search in episode.searches}
    facts = {(relation, subject): value for graph in question.reference_graphs for subject, relation, value in graph}
    return [
        Step(turn, tuple(found), _relevance(question, queries[turn], found, findings.relevance.get(turn), facts))
        for turn, found in new.items()
    ]


def step_relevance(
    question: Question,
    episode: Episode,
    findings: Findings,
    *,
    pass_mark: float = PASS_MARK,
    right: float = 1.6,
    wrong: float = 0.8,
    unanswered: float = 0.9,
    malformed: float = 1.0,
) -> Earned:
    """λ_T · Rel of every step, averaged: Rel counts from the pass mark on, and λ_T depends on how the whole trajectory ended.

    A reconstruction is the mean: the authors train every step as a sample of its own, and a sum over one trajectory would
    pay for more searches.
    """
    factors = {"right": right, "wrong": wrong, "unanswered": unanswered, "malformed": malformed}
    if not 0 <= pass_mark <= 1 or not all(0 <= factor <= 2 for factor in factors.values()):
        raise ValueError(f"needs a pass mark in [0, 1] and factors in [0, 2], got {pass_mark} and {factors}")
    taken = steps(question, episode, findings)
    ending = _ending(question, episode, findings)
    passed = [step for step in taken if step.relevance >= pass_mark]
    turns = {step.turn: factors[ending] * step.relevance / len(taken) for step in passed}
    reason = f"{len(passed)} of {len(taken)} steps are relevant, times {factors[ending]:g} for an ending that is {ending}"
    return Earned(min(2.0, sum(turns.values())), turns, reason)


def step_validity(question: Question, episode: Episode, findings: Findings, *, penalty: float = 0.9) -> Earned:
    """Val = −0.9 where a step was malformed, credited to the turn that was.

    How often a malformed step is sampled again first is the episode's budget (`regenerations`; the authors': 3).
    """
    if not 0 <= penalty <= 1:
        raise ValueError(f"needs 0 ≤ penalty ≤ 1, got {penalty}")
    if not _is_malformed(episode):
        return Earned(0.0, reason="no step is malformed")
    turn = last_turn(episode)
    return Earned(-penalty, {turn: -penalty}, f"turn {turn} is malformed")


def search_efficiency(question: Question, episode: Episode, findings: Findings, *, pass_mark: float = PASS_MARK) -> Earned:
    """Share of the searches that brought something new and relevant; 0 without any search."""
    if not 0 <= pass_mark <= 1:
        raise ValueError(f"needs a pass mark in [0, 1], got {pass_mark}")
    taken = steps(question, episode, findings)
    useful = [step.turn for step in taken if step.new and step.relevance >= pass_mark]
    turns = {turn: 1 / len(taken) for turn in useful}
    return Earned(len(useful) / max(1, len(taken)), turns, f"{len(useful)} of {len(taken)} searches brought something of use")


def authority(
    question: Question,
    episode: Episode,
    findings: Findings,
    *,
    relevance: float = 0.4,
    quality: Quality = "six-levels",
    unknown: float = 0.0,
) -> Earned:
    """Mean over the retrieved documents of 0.4 · relevance + 0.6 · quality, MedResearcher-R1's order of its medical retriever.

    A reconstruction: a document of an irrelevant step earns 0, or any meta-analysis would pay.
    """
    table = quality_table(quality, unknown)
    if not 0 <= relevance <= 1:
        raise ValueError(f"needs a share of relevance in [0, 1], got {relevance}")
    taken = steps(question, episode, findings)
    count = sum(len(step.new) for step in taken)
    turns: dict[int, float] = defaultdict(float)
    for step in taken:
        for document in step.new if step.relevance > 0 else ():
            worth = relevance * step.relevance + (1 - relevance) * table.get(document.level, unknown)
            turns[step.turn] += worth / count
    value = min(1.0, sum(turns.values()))
    return Earned(value, dict(turns), f"{value:.2f} is the mean authority over {count} documents")


def _relevance(
    question: Question, query: str, new: list[Retrieved], judged: float | None, facts: Mapping[tuple[str, str], str]
) -> float:
    if not new:
        return 0.0
    if judged is not None:
        return judged
    if facts:
        return float(_agrees(new, facts))
    words = tuple(query.casefold().split())
    return float(
        any(document.id in question.gold_documents or (words and begins_with(document.text, words)) for document in new)
    )


def _agrees(new: list[Retrieved], facts: Mapping[tuple[str, str], str]) -> bool:
    """The rule of the world: some document is about a fact of the reference, and the best about each agrees with it."""
    best: dict[tuple[str, str], tuple[int, bool]] = {}  # of what a document is about: (level, whether it contradicts)
    for document in new:
        for statement in lines_of(document.text):
            about = statement.relation, statement.subject
            if about in facts:
                told = _rank(document, statement), statement.object != facts[about]
                best[about] = min(best.get(about, told), told)
    return bool(best) and not any(contradicts for _, contradicts in best.values())


def _rank(document: Retrieved, statement: Statement) -> int:
    """The level that the index gives, else the one that the line itself names."""
    return document.level if 1 <= document.level <= 6 else statement.level


def _is_malformed(episode: Episode) -> bool:
    """Whether the protocol said so, or an answer came in a form that is none; running out of budget is neither."""
    return episode.finish == MALFORMED or (episode.finish == ANSWERED and not is_well_formed(episode))


def _ending(question: Question, episode: Episode, findings: Findings) -> str:
    if _is_malformed(episode):
        return "malformed"
    if episode.finish != ANSWERED:
        return "unanswered"
    judged_right = question.kind is AnswerKind.TEXT and findings.judged == 2
    return "right" if judged_right or is_correct(question, episode.answer) else "wrong"
