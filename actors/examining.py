"""What an evaluation keeps of an episode: one small record, by rule alone, whoever sampled the tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from math import isnan

from actors.messages import Examined
from actors.tokens import TagReader
from rewards.composition import Score
from rewards.evidence import cited
from rewards.format import is_well_formed
from rewards.overlap import exact_match, token_f1
from rewards.phrases import stated
from rewards.relevance import retrieved
from tasks.prompting import ANSWER_OPEN
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode, Source, WeightVersion


def examined(question: Question, episode: Episode, score: Score, sample: int, tags: TagReader) -> Examined:
    """The record of a scored episode; `sample` counts the episodes of its question."""
    versions = [WeightVersion(span.generation, span.number) for span in episode.versions]
    tokens: Counter[str] = Counter()
    for segment in episode.segments:
        tokens[segment.source] += segment.end - segment.start
    logprobs = answer_logprobs(episode, tags)
    exact, f1 = agreement(question, episode.answer) if is_well_formed(episode) else (False, 0.0)
    citations = cited(episode)
    return Examined(
        question_id=question.id,
        sample=sample,
        answer=episode.answer,
        correct=score.correct,
        exact=exact,
        f1=f1,
        finish=episode.finish,
        searches=sum(search.tool == "search" for search in episode.searches),
        retrieved=tuple(document.id for document in retrieved(episode)),
        cited=tuple(document.id for document in citations),
        retrieved_levels=tuple(document.level for document in retrieved(episode) if document.level),
        cited_levels=tuple(score.cited_levels),
        model_tokens=tokens[Source.MODEL],
        document_tokens=tokens[Source.DOCUMENT],
        confidence=sum(logprobs) / len(logprobs) if logprobs else None,
        version=str(max(versions)) if versions else "",
        seconds=episode.generate_s + episode.search_s,
    )


def agreement(question: Question, answer: str) -> tuple[bool, float]:
    """Exact match and word F1 with the gold answer, or whichever of its spellings is nearest.

    Example:
        >>> fabry = Question(id="q", text="?", kind="text", gold="Fabry disease")
        >>> agreement(fabry, "the Fabry disease"), agreement(fabry, "Gaucher disease")
        ((True, 1.0), (False, 0.5))
    """
    said = stated(answer)
    references = [question.gold, *question.aliases]
    if question.kind is AnswerKind.CHOICE:
        option = question.options[question.gold]
        references += [option, f"{question.gold} {option}"]
    exact = any(exact_match(said, reference) for reference in references)
    return exact, max(token_f1(said, reference) for reference in references) / 100


def answer_logprobs(episode: Episode, tags: TagReader) -> list[float]:
    """The log-probabilities of the tokens that spell the answer, its tags left out; none where there is no answer.

    Tokens are found by decoding ever longer beginnings, because in most vocabularies no token boundary falls on a tag's.
    """
    positions: list[int] = []
    for segment in reversed(episode.segments):  # the answer is at the end: what comes before is never decoded
        if segment.source == Source.PROMPT:
            break
        positions = [*range(segment.start, segment.end), *positions]
        if ANSWER_OPEN in tags.text([episode.token_ids[i] for i in positions]):
            break
    if not episode.answer or not positions:
        return []
    ids = [episode.token_ids[i] for i in positions]

    def said(count: int) -> str:
        """What the first tokens spell behind the opening tag."""
        _, tag, rest = tags.text(ids[:count]).rpartition(ANSWER_OPEN)
        return rest.strip() if tag else ""

    counts = range(len(ids) + 1)
    # The token that ends the tag may begin the answer as well.
    first = bisect_left(counts, True, key=lambda count: bool(said(count))) - 1
    last = bisect_left(counts, True, lo=first + 1, key=lambda count: said(count).startswith(episode.answer))
    found = [episode.logprobs[i] for i in positions[first:last] if episode.loss_mask[i]]
    return [] if any(isnan(logprob) for logprob in found) else found
