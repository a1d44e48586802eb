"""Who can answer: an oracle that reads a question's gold documents, and a reader that looks at the question alone.

The oracle gets what the question says and what its gold documents say, and the plan of the reference graph with every entity blanked
that the text does not name. It must come to one answer; a question for which it does not is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasks.graph.knowledge import Statement, is_literal
from tasks.graph.pattern import Blank, Clue, Told, TooMany, Vague, answers
from tasks.graph.vagueness import vague
from tasks.graph.wording import gives_away, mentions, statements_in, weight_in
from tasks.questions import AnswerKind, Document, Question


def masked_plan(question: Question) -> tuple[list[Clue], Blank]:
    """The reference graph as a reader of the question knows it: names that the text says, rough values, blanks; and what is asked.

    Example:
        >>> asked = Question(id="q", text="Name the drug for the gene of Fabry disease.", kind="text", gold="Lomab",
        ...     reference_graphs=((("Fabry disease", "caused by", "GLA"), ("GLA", "inhibited by", "Lomab")),))
        >>> masked_plan(asked)[0]
        [Clue(subject='Fabry disease', relation='caused by', object=Blank(number=1, kind='')), \
Clue(subject=Blank(number=1, kind=''), relation='inhibited by', object=Blank(number=2, kind=''))]
    """
    blanks: dict[str, Blank] = {}

    def term(name: str, *, is_last: bool) -> str | Blank | Vague:
        if is_literal(name) and not is_last:
            return Vague(vague(name))
        if not is_last and mentions(question.text, name):
            return name
        return blanks.setdefault(name, Blank(len(blanks) + 1))

    graph = question.reference_graphs[0]
    dosed = question.kind is AnswerKind.NUMBER
    clues = [
        Clue(term(s, is_last=False), relation, term(o, is_last=dosed and place == len(graph) - 1))
        for place, (s, relation, o) in enumerate(graph)
    ]
    answer = graph[-1][2] if dosed else question.gold
    return clues, blanks.setdefault(answer, Blank(len(blanks) + 1))


def solve(
    question: Question,
    documents: Mapping[str, Document],
    phrases: Mapping[str, str],
    claims: Mapping[str, list[Statement]] | None = None,
) -> str | None:
    """The one answer that the gold documents allow; None where they allow none or several.

    `claims` are statements that a model read out of documents in free text; they count where both names really stand there.
    """
    if not question.reference_graphs or any(name not in documents for name in question.gold_documents):
        return None
    clues, asked = masked_plan(question)
    if any(clue.object.words not in question.text for clue in clues if isinstance(clue.object, Vague)):
        return None  # the plan would know what the text does not say
    relations = sorted({clue.relation for clue in clues})
    told = Told(_told(question, documents, relations, phrases, claims or {}))
    try:
        found = answers(clues, asked, told)
    except TooMany:
        return None
    if len(found) != 1:
        return None
    answer = found.pop()
    if question.kind is not AnswerKind.NUMBER:
        return answer
    weight = weight_in(question.text)
    return None if weight is None or not is_literal(answer) else str(round(float(answer) * weight, 6)).removesuffix(".0")


def _told(
    question: Question,
    documents: Mapping[str, Document],
    relations: list[str],
    phrases: Mapping[str, str],
    claims: Mapping[str, list[Statement]],
) -> Iterable[Statement]:
    for name in dict.fromkeys(question.gold_documents):
        text = documents[name].text
        read = statements_in(text, name, relations, phrases)
        yield from read
        if not read:
            yield from (c for c in claims.get(name, ()) if mentions(text, c.subject) and mentions(text, c.object))


def is_in_question(question: Question, common: frozenset[str]) -> bool:
    """Whether the question alone says its answer, an alias of it, or a word that tells it."""
    return any(gives_away(question.text, name, common) for name in (question.gold, *question.aliases))
