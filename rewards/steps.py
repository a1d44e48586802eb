"""Is every step worth its search? R3-RAG's process rewards (arXiv 2505.23794) and MedResearcher-R1's quality (arXiv 2508.14880)."""

from __future__ import annotations

from collections import defaultdict

from rewards.answers import is_correct
from rewards.earned import Earned
from rewards.evidence import Quality, quality_table
from rewards.extraction import last_turn
from rewards.findings import Findings
from rewards.format import ANSWERED, MALFORMED, is_well_formed
from rewards.relevance import steps
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

PASS_MARK = 0.6  # R3-RAG's: a step whose documents are less relevant earns nothing


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

    A reconstruction: a document that does not concern the question earns 0, or any meta-analysis would pay.
    """
    table = quality_table(quality, unknown)
    if not 0 <= relevance <= 1:
        raise ValueError(f"needs a share of relevance in [0, 1], got {relevance}")
    taken = steps(question, episode, findings)
    count = sum(len(step.new) for step in taken)
    turns: dict[int, float] = defaultdict(float)
    for step in taken:
        for document in step.concerning:
            worth = relevance * step.relevance + (1 - relevance) * table.get(document.level, unknown)
            turns[step.turn] += worth / count
    value = min(1.0, sum(turns.values()))
    return Earned(value, dict(turns), f"{value:.2f} is the mean authority over {count} documents")


def _is_malformed(episode: Episode) -> bool:
    """Whether the protocol said so, or an answer came in a form that is none; running out of budget is neither."""
    return episode.finish == MALFORMED or (episode.finish in ANSWERED and not is_well_formed(episode))


def _ending(question: Question, episode: Episode, findings: Findings) -> str:
    if _is_malformed(episode):
        return "malformed"
    if episode.finish not in ANSWERED:
        return "unanswered"
    judged_right = question.kind is AnswerKind.TEXT and findings.judged == 2
    return "right" if judged_right or is_correct(question, episode.answer) else "wrong"
