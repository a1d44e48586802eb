"""Which of a teacher's episodes are worth learning from: MedResearcher-R1's rollout filters and R3-RAG's right answers."""

from __future__ import annotations

from dataclasses import dataclass

from actors.teaching.guidance import quotes_guidance
from actors.teaching.noise import is_failure
from rewards.answers import is_correct
from rewards.format import is_well_formed
from rewards.text import own_text
from tasks.questions import Question
from trajectories.schema import Episode, Source


@dataclass(frozen=True)
class FilterRules:
    """Bounds as published."""

    min_turns: int = 3
    max_tokens: int = 32_000
    max_calls: int = 10


def fault(episode: Episode, question: Question, rules: FilterRules) -> str:
    """Why an episode is not kept; empty where it is. `question` is the one that the student is asked."""
    calls = [(search.tool, " ".join(search.query.casefold().split())) for search in episode.searches]
    turns = {segment.turn for segment in episode.segments if segment.source == Source.MODEL}
    checks = {
        "no answer": not episode.answer.strip(),
        "malformed": not is_well_formed(episode),
        "wrong answer": not is_correct(question, episode.answer),
        "quotes the hint": quotes_guidance(own_text(episode.text)),
        "repeated call": len(set(calls)) < len(calls),
        "too few turns": len(turns) < rules.min_turns,
        "too many calls": len(calls) > rules.max_calls,
        "too long": len(episode.token_ids) > rules.max_tokens,
        "no valid tool response": bool(calls) and not any(_is_valid(episode, place) for place in range(len(calls))),
        "ends on a failed call": bool(calls) and not _is_valid(episode, len(calls) - 1),
    }
    return next((reason for reason, applies in checks.items() if applies), "")


def executed_calls(episode: Episode) -> int:
    """Calls that brought something: those that failed on purpose do not count."""
    return sum(_is_valid(episode, place) for place in range(len(episode.searches)))


def _is_valid(episode: Episode, place: int) -> bool:
    search = episode.searches[place]
    return bool(search.documents) and not search.degraded and not any(is_failure(text) for text in search.documents)
