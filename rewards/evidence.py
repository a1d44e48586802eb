"""How good is what the episode found and leaned on? Only what was really retrieved counts, whatever the model claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rewards.earned import Earned
from rewards.findings import Findings
from rewards.relevance import Retrieved, begins_with, plain, relevant, retrieved
from rewards.text import own_thinking
from tasks.questions import Question
from trajectories.schema import Episode

# Levels I to VI, from meta-analysis to opinion; the even steps are a reconstruction, Med-R³ (arXiv 2507.23541) gives the order.
LEVEL_QUALITY = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
# The same authors' order of nine publication types, 9 for a meta-analysis to 1 for an opinion, over 9. A search tells a level and
# no type, so a level has the mean of its types: I of 9 and 8, II of 7 (guideline) and 6, III 5, IV 4, V of 3 and 2, VI 1.
NINE_TYPES_QUALITY = (17 / 18, 13 / 18, 5 / 9, 4 / 9, 5 / 18, 1 / 9)
# So often a document may stand in the thinking as part of other words before the search for it ends: honest text has none.
MAX_PLACES = 100
QUALITIES = {"six-levels": LEVEL_QUALITY, "nine-types": NINE_TYPES_QUALITY}

Quality = str | Sequence[float]
"""A preset's name or one's own six numbers."""


def cited(episode: Episode) -> list[Retrieved]:
    """The retrieved documents whose whole text stands verbatim in the model's own thinking."""
    thinking = plain(own_thinking(episode.text))
    return [document for document in retrieved(episode) if _stands_in(document.text, thinking)]


def evidence(
    question: Question,
    episode: Episode,
    findings: Findings,
    *,
    quality: Quality = "six-levels",
    unknown: float = 0.0,
    relevant_only: bool = False,
) -> Earned:
    """Mean quality of the cited documents by their level; 0 if none is cited. A level that is unknown earns `unknown`.

    With `relevant_only`, a document that does not concern the question has quality 0; without it, strong evidence on anything pays.
    """
    table = quality_table(quality, unknown)
    citations = cited(episode)
    concerning = relevant(question, episode, findings) if relevant_only else set(citations)
    return _mean(
        [(document, table.get(document.level, unknown) if document in concerning else 0.0) for document in citations], "cited"
    )


def evidence_quality(
    question: Question, episode: Episode, findings: Findings, *, quality: Quality = "six-levels", unknown: float = 0.0
) -> Earned:
    """Mean quality of the retrieved documents by their level (Med-R³, phase 2); 0 if there is none.

    A reconstruction: the paper says neither the numbers nor that it is the mean, nor that a document which does not concern the
    question has quality 0, without which any meta-analysis would pay. What the model leans on is for `evidence` to say.
    """
    table = quality_table(quality, unknown)
    concerning = relevant(question, episode, findings)
    values = [
        (document, table.get(document.level, unknown) if document in concerning else 0.0) for document in retrieved(episode)
    ]
    return _mean(values, "retrieved")


def evidence_relative(question: Question, episode: Episode, findings: Findings) -> Earned:
    """Share of the cited documents that are the best on their subject among the retrieved.

    A document is on the subject of a query when it begins with the query's words. A cited document that is on the subject of no
    query, or whose level is unknown, is never the best.
    """
    citations = cited(episode)
    found = retrieved(episode) if citations else []
    subjects = {tuple(search.query.casefold().split()) for search in episode.searches} - {()}
    values = []
    for document in citations:
        rivals = [
            rival.level
            for subject in subjects
            if begins_with(document.text, subject)
            for rival in found
            if rival.level > 0 and begins_with(rival.text, subject)
        ]
        values.append((document, float(document.level > 0 and bool(rivals) and document.level == min(rivals))))
    return _mean(values, "cited, which are the best on their subject")


def quality_table(quality: Quality, unknown: float) -> dict[int, float]:
    """Level → quality; a level that is not in it is unknown."""
    if isinstance(quality, str) and quality not in QUALITIES:
        raise ValueError(
            f"evidence quality {quality!r} is unknown; known are {', '.join(QUALITIES)}, or six numbers of your own"
        )
    values = QUALITIES[quality] if isinstance(quality, str) else quality
    if len(values) != len(LEVEL_QUALITY) or not all(0 <= value <= 1 for value in (unknown, *values)):
        raise ValueError(
            f"needs one quality in [0, 1] for each level from I to VI, got {list(values)} and {unknown} for unknown"
        )
    return dict(enumerate(values, 1))


def _mean(values: list[tuple[Retrieved, float]], which: str) -> Earned:
    if not values:
        return Earned(0.0, reason=f"no document is {which.partition(',')[0]}")
    turns: dict[int, float] = defaultdict(float)
    for document, value in values:
        turns[document.turn] += value / len(values)
    mean = sum(value for _, value in values) / len(values)
    return Earned(mean, dict(turns), f"{mean:.2f} is the mean over {len(values)} documents {which}")


def _stands_in(part: str, whole: str) -> bool:
    """Whether the part stands in the whole as words of its own: "dose 4" does not stand in "dose 42"."""
    start = whole.find(part) if part else -1
    for _ in range(MAX_PLACES):
        if start < 0:
            return False
        before, after = whole[start - 1 : start], whole[start + len(part) : start + len(part) + 1]
        if not (before.isalnum() and part[0].isalnum()) and not (after.isalnum() and part[-1].isalnum()):
            return True
        start = whole.find(part, start + 1)
    return False
