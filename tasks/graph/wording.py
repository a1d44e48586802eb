"""How statements and questions are put into words without a model: plain sentences, one clue each, and read back from them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from tasks.graph.knowledge import Statement
from tasks.graph.pattern import Blank, Clue, Term, Vague

# Relations that end like this want a verb before them: "caused by", "located in".
_NEEDS_IS = ("by", "in", "of", "with", "to", "as", "for", "at", "from", "on")
_VERBS = ("is", "was", "has", "have", "must", "may", "can")
ENTITY = "entity"  # where a graph has no types
DOSE_WORDS = "dose"  # a relation whose name has it is a dose per kilogram, and can be multiplied by a weight
_WEIGHT = re.compile(r"weighs (\d+) kg")
_WORD = re.compile(r"\w+")
COMMON_LETTERS = 4  # shorter words tell no entity from another


def phrase_of(relation: str, phrases: Mapping[str, str]) -> str:
    """The words between the two names of a relation: those given, or its own name made a verb.

    Example:
        >>> phrase_of("caused_by", {}), phrase_of("treats", {}), phrase_of("parent-child", {})
        ('is caused by', 'treats', 'stands in the relation parent-child to')
    """
    if relation in phrases:
        return phrases[relation]
    words = relation.replace("_", " ").strip().casefold()
    parts = words.split() or [""]
    if parts[0] in _VERBS:
        return words
    if parts[-1] in _NEEDS_IS:
        return f"is {words}"
    return words if " " not in words and words.isalpha() and words.endswith("s") else f"stands in the relation {words} to"


def sentence(statement: Statement, phrases: Mapping[str, str]) -> str:
    """A statement as a document says it."""
    return f"{statement.subject} {phrase_of(statement.relation, phrases)} {statement.object}."


def statements_in(text: str, document: str, relations: Iterable[str], phrases: Mapping[str, str]) -> list[Statement]:
    """The statements that stand in a text, each on a line of its own, of the relations looked for.

    Example:
        >>> statements_in("It is old.\\nFabry disease is caused by GLA.", "d1", ["caused_by"], {})
        [Statement(subject='Fabry disease', relation='caused_by', object='GLA', document='d1')]
    """
    found = []
    for line in text.splitlines():
        for relation in relations:
            subject, between, object_ = line.partition(f" {phrase_of(relation, phrases)} ")
            if between and object_.endswith("."):
                found.append(Statement(subject, relation, object_[:-1], document))
    return found


def template(clues: Sequence[Clue], asked: Blank, phrases: Mapping[str, str], weight_kg: int | None) -> str:
    """A question in plain sentences. A blank is 'a certain gene [2]' when it first appears, 'gene [2]' from then on.

    Example:
        >>> gene, drug = Blank(1, "gene"), Blank(2, "drug")
        >>> template([Clue("Fabry disease", "caused_by", gene), Clue(gene, "inhibited_by", drug)], drug, {}, None)
        'Fabry disease is caused by a certain gene [1]. Gene [1] is inhibited by a certain drug [2]. Name drug [2].'
    """
    met: set[Blank] = set()
    parts = []
    for clue in clues:
        if weight_kg is not None and clue.object == asked:
            continue  # the question itself asks for it
        words = [_term(clue.subject, met), phrase_of(clue.relation, phrases), _term(clue.object, met)]
        text = " ".join(words)
        parts.append(f"{text[0].upper()}{text[1:]}." if isinstance(clue.subject, Blank) else f"{text}.")
    if weight_kg is None:
        parts.append(f"Name {_known(asked)}.")
    else:
        drug = next(clue.subject for clue in clues if clue.object == asked)
        name = _term(drug, met)
        parts.append(f"A patient weighs {weight_kg} kg. By its dose per kg, how many mg of {name} does the patient get?")
    return " ".join(parts)


def weight_in(text: str) -> int | None:
    """The weight that a dose is asked for."""
    found = _WEIGHT.search(text)
    return int(found[1]) if found else None


def mentions(text: str, name: str) -> bool:
    """Whether a text says a name, in whatever case and with whatever punctuation between its words."""
    return f" {_plain(name)} " in f" {_plain(text)} "


def gives_away(text: str, name: str, common: frozenset[str]) -> bool:
    """Whether a text says a name, or a word of it by which it would be known.

    `common` are words that many names share, such as 'syndrome'.

    Example:
        >>> gives_away("Which form of Fabry is it?", "Fabry disease", frozenset({"disease"}))
        True
        >>> gives_away("Which disease is it?", "Fabry disease", frozenset({"disease"}))
        False
    """
    if mentions(text, name):
        return True
    said = set(_plain(text).split())
    return any(word in said for word in _plain(name).split() if len(word) >= COMMON_LETTERS and word not in common)


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _term(term: Term, met: set[Blank]) -> str:
    if isinstance(term, Vague):
        return term.words
    if isinstance(term, str):
        return term
    first = term not in met
    met.add(term)
    return f"a certain {_known(term)}" if first else _known(term)


def _known(blank: Blank) -> str:
    return f"{blank.kind or ENTITY} [{blank.number}]"
