"""A teacher's episode in a student's tokens: the same words, the student's own prompt, loss on what the teacher wrote.

Every segment is encoded by itself, as a rollout appends it. No engine sampled these tokens, so they have no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tasks.questions import Question
from trajectories.schema import Episode, Segment, Source, VersionSpan

STUDENT_TEMPERATURE = 1.0  # whatever the teacher's was: a learner divides by it, and a greedy teacher's is 0
Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


def retold(episode: Episode, question: Question, decode: Decode, prompt: Sequence[int], encode: Encode) -> Episode:
    """The episode in other tokens. `prompt` is the student's; whatever else the teacher was told is gone."""
    ids, segments = list(prompt), [Segment(Source.PROMPT.value, 0, len(prompt), -1)]
    for told in episode.segments:
        if told.turn < 0:
            continue
        piece = encode(decode(episode.token_ids[told.start : told.end]))
        segments.append(Segment(told.source, len(ids), len(ids) + len(piece), told.turn))
        ids += piece
    return replace(
        episode, question_id=question.id, source=question.source, kind=question.kind.value, token_ids=ids,
        logprobs=[0.0] * len(ids), segments=segments, temperature=STUDENT_TEMPERATURE, **_written(segments, len(ids)),
    )  # fmt: skip


def by_steps(episode: Episode) -> list[Episode]:
    """One row for each turn (R3-RAG): all before it is given, only the turn itself is learned.

    Example:
        >>> from trajectories.schema import check, to_table
        >>> spans = [Segment("prompt", 0, 2, -1), Segment("model", 2, 4, 0), Segment("document", 4, 5, 0), Segment("model", 5, 6, 1)]
        >>> whole = Episode("r", "g", "e", "q", 0, "p", "s", "text", [1, 2, 3, 4, 5, 6], **_written(spans, 6), logprobs=[0.0] * 6,
        ...     segments=spans, searches=[])
        >>> [(row.episode_id, row.token_ids, row.loss_mask) for row in by_steps(whole)][1]
        ('e#1', [1, 2, 3, 4, 5, 6], [False, False, False, False, False, True])
        >>> [check(row) for row in to_table(by_steps(whole)).to_pylist()]
        [[], []]
    """
    rows = []
    for learned in (segment for segment in episode.segments if segment.source == Source.MODEL):
        segments = [
            replace(each, source=Source.PROMPT.value) if each.source == Source.MODEL and each != learned else each
            for each in episode.segments
            if each.end <= learned.end
        ]
        end = learned.end
        rows.append(
            replace(
                episode,
                episode_id=f"{episode.episode_id}#{learned.turn}",
                token_ids=episode.token_ids[:end],
                logprobs=episode.logprobs[:end],
                segments=segments,
                searches=[search for search in episode.searches if search.turn < learned.turn],
                **_written(segments, end),
            )
        )
    return rows


def _written(segments: Sequence[Segment], length: int) -> dict[str, Any]:
    """Loss mask and versions: both follow from which segments the model wrote."""
    mask = [False] * length
    written = [segment for segment in segments if segment.source == Source.MODEL]
    for segment in written:
        mask[segment.start : segment.end] = [True] * (segment.end - segment.start)
    return {"loss_mask": mask, "versions": [VersionSpan(0, 0, segment.start, segment.end) for segment in written]}
