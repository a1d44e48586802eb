"""Is the episode well-formed, and did it search more than it may?"""

from __future__ import annotations

from rewards.earned import Earned
from rewards.text import own_text, tags_in_order
from tasks.prompting import ANSWER_CLOSE, ANSWER_OPEN, DOCUMENT_OPEN, SEARCH_CLOSE, SEARCH_OPEN, THINK_CLOSE, THINK_OPEN
from tasks.questions import Question
from trajectories.schema import Episode

ANSWERED, MALFORMED = "answer", "malformed"  # the two reasons for an episode's end that matter here


def is_well_formed(episode: Episode) -> bool:
    """Thinking, with whole searches inside it, then one answer that is not empty; no document of the model's own making.

    A chat template may put the opening think tag into the prompt: then the response starts inside the thinking.
    """
    if episode.finish != ANSWERED or not episode.answer.strip():
        return False
    if episode.text.count(DOCUMENT_OPEN) > sum(len(search.documents) for search in episode.searches):
        return False
    tags = tags_in_order(own_text(episode.text))
    if tags[:1] == [THINK_OPEN]:
        tags = tags[1:]
    if tags[-3:] != [THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE]:
        return False
    searches = tags[:-3]
    return searches == [SEARCH_OPEN, SEARCH_CLOSE] * (len(searches) // 2)


def well_formed(question: Question, episode: Episode) -> Earned:
    """1 for a well-formed episode, else 0."""
    return Earned(float(is_well_formed(episode)))


def malformed(question: Question, episode: Episode) -> Earned:
    """−1 where the protocol ended the episode as malformed, else 0: a penalty that running out of budget does not earn."""
    return Earned(-1.0 if episode.finish == MALFORMED else 0.0)


def search_count(question: Question, episode: Episode, *, free: int = 0, cost: float = 0.1) -> Earned:
    """−`cost` for every search beyond the `free` ones, −1 at most."""
    if free < 0 or not 0 <= cost <= 1:
        raise ValueError(f"needs free ≥ 0 and 0 ≤ cost ≤ 1, got free {free} and cost {cost}")
    return Earned(-min(1.0, cost * max(0, len(episode.searches) - free)))
