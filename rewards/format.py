"""Is the episode well-formed, and did it search more than it may?

Only the protocol's own tags, character by character, are tags. A look-alike (full-width brackets, a zero-width character, other case or
space inside) is ordinary text: it opens nothing and closes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rewards.earned import Earned
from rewards.findings import Findings
from rewards.phrases import normalise
from rewards.text import RECENT_TEXTS, own_text, tags_in_order
from tasks.prompting import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CALL_CLOSE,
    DOCUMENT_OPEN,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)
from tasks.questions import Question
from trajectories.schema import Episode

# The reasons for an episode's end that matter here. A forced answer is one, although the protocol had to ask for it.
ANSWERED, MALFORMED, LOOP = frozenset({"answer", "forced"}), "malformed", "loop"


def is_well_formed(episode: Episode) -> bool:
    """Thinking, with whole searches inside it, then one answer that is not empty; no document of the model's own making.

    A chat template may put the opening think tag into the prompt: then the response starts inside the thinking.
    """
    return not _fault(episode)


def well_formed(question: Question, episode: Episode, findings: Findings) -> Earned:
    """1 for a well-formed episode, else 0."""
    fault = _fault(episode)
    return Earned(0.0 if fault else 1.0, reason=fault or "well-formed")


def format_signed(question: Question, episode: Episode, findings: Findings) -> Earned:
    """+1 for a well-formed episode, else −1 (Med-U1, arXiv 2506.12307)."""
    fault = _fault(episode)
    return Earned(-1.0 if fault else 1.0, reason=fault or "well-formed")


def format_graded(question: Question, episode: Episode, findings: Findings) -> Earned:
    """1 for a well-formed episode, 0.5 where only its answer is, else 0.

    R3-RAG (arXiv 2505.23794) and Med-R³ (arXiv 2507.23541) grade in these three steps. What earns the middle one is a reconstruction: the
    model's own text ends with exactly one answer that is not empty, and no document in it is the model's own.
    """
    fault = _fault(episode)
    if not fault:
        return Earned(1.0, reason="well-formed")
    return (
        Earned(0.5, reason=f"only the answer is well-formed: {fault}")
        if _ends_with_one_answer(episode)
        else Earned(0.0, reason=fault)
    )


def malformed(question: Question, episode: Episode, findings: Findings) -> Earned:
    """−1 where the protocol ended the episode as malformed, else 0: a penalty that running out of budget does not earn.

    It does so on an empty or unclosed search, too.
    """
    return Earned(-1.0, reason="out of the protocol's grammar") if episode.finish == MALFORMED else Earned(0.0)


def search_count(question: Question, episode: Episode, findings: Findings, *, free: int = 0, cost: float = 0.1) -> Earned:
    """−`cost` for every search beyond the `free` ones, −1 at most."""
    if free < 0 or not 0 <= cost <= 1:
        raise ValueError(f"needs free ≥ 0 and 0 ≤ cost ≤ 1, got free {free} and cost {cost}")
    turns = [search.turn for search in episode.searches][free:]
    return _charge(turns, cost, f"{len(episode.searches)} searches, {free} are free")


def repeated_search(question: Question, episode: Episode, findings: Findings, *, cost: float = 0.5) -> Earned:
    """−`cost` for every search whose words an earlier one had, −1 at most; case, punctuation and articles make no other words.

    The protocol refuses a query that is the same letter by letter and ends the episode as a loop: that is one such search more.
    A loop may also be one of words; those are no search.
    """
    if not 0 <= cost <= 1:
        raise ValueError(f"needs 0 ≤ cost ≤ 1, got cost {cost}")
    asked: set[tuple[str, str]] = set()
    turns: list[int] = []
    for search in episode.searches:
        query = search.tool, normalise(search.query)
        if query in asked:
            turns.append(search.turn)
        asked.add(query)
    if episode.finish == LOOP and own_text(episode.text).rstrip().endswith((SEARCH_CLOSE, CALL_CLOSE)):
        turns.append(max((search.turn for search in episode.searches), default=-1) + 1)
    return _charge(turns, cost, f"{len(turns)} repeated searches")


def _charge(turns: Sequence[int], cost: float, reason: str) -> Earned:
    """−cost for every turn, in order, until the whole charge is −1."""
    shares: dict[int, float] = {}
    left = 1.0
    for turn in turns:
        share = min(cost, left)
        left -= share
        shares[turn] = shares.get(turn, 0.0) - share
    return Earned(max(-1.0, -min(1.0, cost * len(turns))), shares, reason)


def _fault(episode: Episode) -> str:
    """What is wrong with an episode's form, in few words; "" where nothing is."""
    if episode.finish not in ANSWERED:
        return f"ended by {episode.finish or 'nothing'} instead of an answer"
    if not episode.answer.strip():
        return "an empty answer"
    if _has_forged_document(episode):
        return "a document of the model's own making"
    return _fault_of_text(episode.text)


@lru_cache(maxsize=RECENT_TEXTS)
def _fault_of_text(text: str) -> str:
    own = own_text(text)
    tags = tags_in_order(own)
    if tags[:1] == [THINK_OPEN]:
        tags = tags[1:]
    if tags[-3:] != [THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE]:
        return "the end is not one thinking and one answer"
    if not _between(own, ANSWER_OPEN, ANSWER_CLOSE):
        return "an empty answer"
    searches = tags[:-3]
    return "" if searches == [SEARCH_OPEN, SEARCH_CLOSE] * (len(searches) // 2) else "tags out of order in the thinking"


def _has_forged_document(episode: Episode) -> bool:
    return episode.text.count(DOCUMENT_OPEN) > sum(len(search.documents) for search in episode.searches)


def _ends_with_one_answer(episode: Episode) -> bool:
    if _has_forged_document(episode):
        return False
    own = own_text(episode.text)
    tags = tags_in_order(own)
    if tags[-2:] != [ANSWER_OPEN, ANSWER_CLOSE] or tags.count(ANSWER_OPEN) != 1 or tags.count(ANSWER_CLOSE) != 1:
        return False
    return bool(_between(own, ANSWER_OPEN, ANSWER_CLOSE))


def _between(text: str, opening: str, closing: str) -> str:
    """What stands between the first opening and the closing behind it."""
    return text.partition(opening)[2].partition(closing)[0].strip()
