"""Finds out what a recipe's components need to know about episodes: by rule in the fictional world, else by judge and encoder."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rewards.answers import is_correct
from rewards.extraction import settled_by_rule
from rewards.findings import Findings, Graph, JudgeFailed
from rewards.format import is_well_formed
from rewards.graph import MAX_REFERENCES, as_text
from rewards.judge import Judge
from rewards.judge_prompts import answer_verdict, step_relevance_verdict, triples_verdict
from rewards.relevance import retrieves
from rewards.text import own_thinking
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

Vectors = npt.NDArray[np.floating[Any]]
Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
"""Texts → one vector each. Vectors need not have length 1."""

_ASKING_THE_JUDGE = ("judge", "relevance", "graph")


@dataclass(frozen=True, slots=True)
class Tools:
    """What findings are made with. Without an encoder, the semantic term compares words."""

    judge: Judge | None = None
    embed: Embed | None = None


async def gather(
    question: Question, episodes: Sequence[Episode], needs: frozenset[str], tools: Tools
) -> list[Findings | JudgeFailed]:
    """The findings on each episode of one question, or why there are none; one episode's failure is not another's.

    Raises ValueError where the needs ask for a judge and there is none: a reward that is quietly dead would look like a lesson.
    """
    judged = sorted(needs.intersection(_ASKING_THE_JUDGE)) if not settled_by_rule(question) else []
    if judged and tools.judge is None:
        raise ValueError(
            f"this reward needs a judge ({', '.join(judged)}) for questions of {question.source!r}; set rollout.judge, or choose"
            " components that rules can settle"
        )
    embed = tools.embed if "embedding" in needs and question.reference_graphs else None
    similarities = await _similarities(question, episodes, embed) if embed else [()] * len(episodes)
    return await asyncio.gather(
        *(
            _findings(question, episode, frozenset(judged), tools.judge, similarity)
            for episode, similarity in zip(episodes, similarities, strict=True)
        )
    )


async def _findings(
    question: Question, episode: Episode, judged: frozenset[str], judge: Judge | None, similarity: tuple[float, ...]
) -> Findings | JudgeFailed:
    if not all(map(math.isfinite, similarity)):
        return JudgeFailed("the encoder gave a vector that is not finite")
    if judge is None or not judged:
        return Findings(similarity=similarity)
    try:
        verdict, relevance, graph = await asyncio.gather(
            _verdict(question, episode, judge if "judge" in judged else None),
            _relevance(question, episode, judge if "relevance" in judged else None),
            _graph(question, episode, judge if "graph" in judged else None),
        )
    except JudgeFailed as failure:
        return failure
    except Exception as error:  # whatever a hostile episode brings about is its sample's loss, not its group's
        return JudgeFailed(f"{type(error).__name__} {error}".strip())
    return Findings(judged=verdict, relevance=relevance, graph=graph, similarity=similarity)


async def _verdict(question: Question, episode: Episode, judge: Judge | None) -> int | None:
    """Only a text leaves anything to judge, and only if it is not one of the accepted phrases as it stands."""
    if judge is None or question.kind is not AnswerKind.TEXT or not is_well_formed(episode):
        return None
    if is_correct(question, episode.answer):
        return 2
    rare_disease = bool(question.broader) or question.source.startswith(judge.config.rare_disease_sources)
    return await judge.ask(answer_verdict(question, episode.answer, rare_disease=rare_disease))


async def _relevance(question: Question, episode: Episode, judge: Judge | None) -> dict[int, float]:
    """Of every turn that brought documents: where several searches share it, the mean of theirs."""
    searches = [search for search in episode.searches if search.documents and retrieves(search)] if judge else []
    if judge is None or not searches:
        return {}
    verdicts = await asyncio.gather(*(judge.ask(step_relevance_verdict(question, search)) for search in searches))
    by_turn: dict[int, list[float]] = {}
    for search, verdict in zip(searches, verdicts, strict=True):
        by_turn.setdefault(search.turn, []).append(verdict)
    return {turn: sum(each) / len(each) for turn, each in by_turn.items()}


async def _graph(question: Question, episode: Episode, judge: Judge | None) -> Graph | None:
    if judge is None:
        return None
    if not own_thinking(episode.text).strip():
        return ()
    return await judge.ask(triples_verdict(question, episode))


async def _similarities(question: Question, episodes: Sequence[Episode], embed: Embed) -> list[tuple[float, ...]]:
    """The cosine of every thinking with every reference, all embedded in one call."""
    references = question.reference_graphs[:MAX_REFERENCES]
    vectors = await embed([*map(as_text, references), *(own_thinking(episode.text) for episode in episodes)])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths == 0, 1.0, lengths)  # a text without words is the zero vector, like nothing
    cosines = unit[len(references) :] @ unit[: len(references)].T
    return [tuple(map(float, row)) for row in cosines]
