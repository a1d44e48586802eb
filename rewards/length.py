"""Is the thinking as long as it should be? Against the answer, against the budget, against what the question asks for."""

from __future__ import annotations

import math

from rewards.earned import Earned
from rewards.findings import Findings
from rewards.text import own_thinking
from tasks.questions import Question
from trajectories.schema import Episode, Source

# Thinking this many times as long as the answer is long enough (Med-R³, arXiv 2507.23541).
ENOUGH_RATIO = 2.0


def think_ratio(question: Question, episode: Episode, findings: Findings) -> Earned:
    """(1 − e^{−min(|think| / |answer|, 2)}) / (1 − e^{−2}), in characters (Med-R³, arXiv 2507.23541); 0 without an answer.

    The thinking is the model's own, without queries and documents. 1 − e^{−2} = 0.8646647 makes the highest value 1.
    """
    thinking, answer = len(own_thinking(episode.text).strip()), len(episode.answer.strip())
    if not answer:
        return Earned(0.0, reason="no answer")
    ratio = min(thinking / answer, ENOUGH_RATIO)
    return Earned(
        math.expm1(-ratio) / math.expm1(-ENOUGH_RATIO), reason=f"{thinking} characters of thinking, {answer} of answer"
    )


def overlong(question: Question, episode: Episode, findings: Findings, *, limit: int = 14_336, buffer: int = 4_096) -> Earned:
    """min(−(L − (limit − buffer)) / buffer, 0), −1 at least, for a response of L tokens, documents included.

    DAPO (arXiv 2503.14476), also in Med-R³ (arXiv 2507.23541). `limit` is Med-R³'s response budget; its buffer is not known, so the default
    is DAPO's: a reconstruction.
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"needs 0 < buffer ≤ limit, got buffer {buffer} and limit {limit}")
    tokens = response_tokens(episode)
    return Earned(max(-1.0, min((limit - buffer - tokens) / buffer, 0.0)), reason=f"{tokens} of {limit} tokens")


def length_instruction(
    question: Question, episode: Episode, findings: Findings, *, exact_scale: float = 1500.0, at_most_scale: float = 500.0
) -> Earned:
    """How well L tokens follow the question's instruction of n (Med-U1, arXiv 2506.12307); 0 where it has none.

    Exactly n: clip(1 − |L − n| / 1500, −1, 1). At most n: clip(−(L − n) / 500, −1, 1). L counts all tokens that the model itself wrote:
    thinking, queries, tags and the answer, which only a tokenizer could tell apart, and no documents. Gate it by `correct`: a wrong
    answer of the right length must not earn more than a right one.
    """
    if not (0 < exact_scale < math.inf and 0 < at_most_scale < math.inf):
        raise ValueError(f"needs scales above 0, got exact_scale {exact_scale} and at_most_scale {at_most_scale}")
    if question.length is None:
        return Earned(0.0, reason="no instruction")
    wanted, tokens = question.length.tokens, own_tokens(episode)
    value = 1 - abs(tokens - wanted) / exact_scale if question.length.mode == "exact" else (wanted - tokens) / at_most_scale
    bound = "exactly" if question.length.mode == "exact" else "at most"
    return Earned(max(-1.0, min(value, 1.0)), reason=f"{tokens} tokens, asked for {bound} {wanted}")


def response_tokens(episode: Episode) -> int:
    """The tokens after the prompt: what the model wrote and what was put between, as the response budget counts them."""
    return sum(
        segment.end - segment.start for segment in episode.segments if segment.source != Source.PROMPT or segment.start > 0
    )


def own_tokens(episode: Episode) -> int:
    """The tokens that the model itself wrote."""
    return sum(segment.end - segment.start for segment in episode.segments if segment.source == Source.MODEL)
