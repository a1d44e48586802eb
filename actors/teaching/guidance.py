"""What a teacher is told beside the question, and a student never sees: the rules of the protocol, and where to look.

The relation path of the answer with every entity masked (MedResearcher-R1): directions for searching, and no fact.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.graph.wording import phrase_of
from tasks.questions import Question

MASK = "[MASK]"
RULES = (
    "Answer a medical question. Think between <think> and </think>. Whenever you need to know something, write <search> your query"
    " </search> within your thinking, and documents will follow; search for one thing at a time, with the names that you know. Where"
    " documents contradict each other, the stronger kind of study is right. Then write the answer alone between <answer> and </answer>."
)


def guided(question: Question, phrases: Mapping[str, str], *, hint: bool) -> Question:
    """The question as a teacher gets it.

    Example:
        >>> asked = Question(id="q", text="Name it.", kind="text", gold="Lomab", reference_graphs=((("GLA", "inhibited by", "Lomab"),),))
        >>> guided(asked, {}, hint=True).text.splitlines()[-2:]
        ['A way that may lead there: [MASK] is inhibited by [MASK].', 'Name it.']
    """
    parts = [RULES]
    if hint and question.reference_graphs:
        way = "; ".join(f"{MASK} {phrase_of(relation, phrases)} {MASK}" for _, relation, _ in question.reference_graphs[0])
        parts.append(f"A way that may lead there: {way}.")
    return question.model_copy(update={"text": "\n".join([*parts, question.text])})


def quotes_guidance(text: str) -> bool:
    """Whether a teacher's words show that it was guided: such an episode would teach to see a hint that is not there."""
    return MASK in text or "a way that may lead" in text.casefold()
