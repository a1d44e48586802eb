"""From a piece of a knowledge graph to a question: what is hidden, what is said roughly, and the proof that one answer fits.

::

    chain of a subgraph ─▶ which end is asked ─▶ clues: names hidden, values said roughly ─▶ exactly one answer? ─▶ Draft
                                 ▲                                   │ no: one clue more
                                 └───────────────── other end ◀──────┘ none left
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

from tasks.graph.knowledge import KnowledgeGraph, Statement
from tasks.graph.pattern import Blank, Clue, InGraph, Term, TooMany, Vague, answers
from tasks.graph.sampling import Subgraph
from tasks.graph.vagueness import vague
from tasks.graph.wording import COMMON_LETTERS, DOSE_WORDS, gives_away, template
from tasks.questions import AnswerKind, Provenance, Question

NEIGHBOURS = 8  # of one entity that are looked at
RARE_NEIGHBOUR = 3  # statements about a neighbour that stands for a hidden entity: few enough for one search to find them all
MOST_SUBJECTS = 2  # that one object is said of by one relation, where a question goes from it to one of them
MORE_CLUES = 3  # that are added where several answers fit
COMMON_NAMES = 20  # a word of so many names tells none of them from the others
DOSED = 0.3  # of the chains that end at a drug with a dose
LIGHTEST_KG, HEAVIEST_KG = 3, 120


@dataclass(frozen=True)
class Draft:
    """A question about to be: its statements with blanks in them, and the true statements behind them, in the same order."""

    clues: tuple[Clue, ...]
    statements: tuple[Statement, ...]
    asked: Blank
    hidden: frozenset[str]  # names that the text must not say
    answer: str
    specialty: str
    sampler: str
    hops: int
    weight_kg: int | None = None  # of a dose that is asked for

    @property
    def gold(self) -> str:
        return self.answer if self.weight_kg is None else str(round(float(self.answer) * self.weight_kg, 6)).removesuffix(".0")

    @property
    def shown(self) -> list[str]:
        """What the text must say, word for word: names that are not hidden, and rough values."""
        terms = [term for clue in self.clues for term in (clue.subject, clue.object)]
        return [term if isinstance(term, str) else term.words for term in terms if not isinstance(term, Blank)]


@dataclass
class QuestionMaker:
    """Makes questions from subgraphs of one graph. `phrases` says how relations are put, `aliases` what else an entity is called."""

    graph: KnowledgeGraph
    phrases: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    collection: str = ""

    @cached_property
    def source(self) -> InGraph:
        return InGraph(self.graph)

    @cached_property
    def common(self) -> frozenset[str]:
        """Words that many names have, and those that every question of this graph says."""
        words = Counter(word for name in self.graph.names for word in set(name.casefold().replace("-", " ").split()))
        said = " ".join([*self.graph.types, *self.phrases.values(), *self.graph.relations]).casefold().replace("_", " ").split()
        return frozenset(
            [word for word, count in words.items() if count >= COMMON_NAMES and len(word) >= COMMON_LETTERS] + said
        )

    def draft(self, piece: Subgraph, rng: random.Random) -> Draft | None:
        """The first way to ask for an end of the chain to which exactly one answer fits; None where there is none."""
        ends = [(piece.chain, piece.edges), (piece.chain[::-1], piece.edges[::-1])]
        for chain, edges in rng.sample(ends, len(ends)):
            for number, draft in enumerate(self._ways(piece, chain, edges, rng)):
                if number > MORE_CLUES:
                    break
                if self._is_sound(draft):
                    return draft
        return None

    def question(self, draft: Draft, text: str | None = None) -> Question:
        """The draft as a question, in the template's words or in those given."""
        written = text or template(draft.clues, draft.asked, self.phrases, draft.weight_kg)
        is_number = draft.weight_kg is not None
        key = blake2b(f"{self.collection}/{written}".encode(), digest_size=8).hexdigest()
        return Question(
            id=f"graph/{key}", text=written, kind=AnswerKind.NUMBER if is_number else AnswerKind.TEXT, gold=draft.gold,
            aliases=() if is_number else self.aliases.get(draft.answer, ()), unit="mg" if is_number else "",
            lower=float(draft.gold) if is_number else None, upper=float(draft.gold) if is_number else None,
            source=f"graph/{draft.sampler}", specialty=draft.specialty, hops=draft.hops, collection=self.collection,
            gold_documents=tuple(stated.document for stated in draft.statements),
            reference_graphs=(tuple(stated.triple for stated in draft.statements),),
            provenance=tuple(Provenance(origin=stated.document, edge=stated.triple) for stated in draft.statements),
        )  # fmt: skip

    def is_hidden_in(self, text: str, draft: Draft) -> bool:
        """Whether a text keeps what it must: no hidden name, no second name of one, and not the answer."""
        names = [name for hidden in draft.hidden for name in (hidden, *self.aliases.get(hidden, ()))]
        return not any(gives_away(text, name, self.common) for name in (*names, draft.gold))

    def _is_sound(self, draft: Draft) -> bool:
        if any(not stated.document for stated in draft.statements) or not self._is_searchable(draft):
            return False
        try:
            found = answers(draft.clues, draft.asked, self.source)
        except TooMany:
            return False
        return found == {draft.answer} and self.is_hidden_in(self.question(draft).text, draft)

    def _is_searchable(self, draft: Draft) -> bool:
        """Whether whoever goes backwards, from an object to what is said of it, finds few enough subjects to look at them all."""
        known: set[Term] = set()
        for clue, stated in zip(draft.clues, draft.statements, strict=True):
            backwards = isinstance(clue.subject, Blank) and clue.subject not in known and not isinstance(clue.object, Vague)
            if backwards and len(self.source.subjects(stated.relation, stated.object)) > MOST_SUBJECTS:
                return False
            known |= {clue.subject, clue.object}
        return True

    def _ways(self, piece: Subgraph, chain: tuple[int, ...], edges: tuple[int, ...], rng: random.Random) -> Iterator[Draft]:
        """The question with its first entity hidden behind a rare neighbour, or named; then with more and more clues."""
        graph = self.graph
        dose = self._dose(chain[-1], rng)
        anchor = self._rare_neighbour(chain, rng)
        rough = self._attribute(chain[0], rng) if anchor is not None else None
        first = [*([graph.statement(anchor)] if anchor is not None else []), *([rough] if rough else [])]
        hanging = [(node, graph.statement(edge)) for edge in piece.extra for node in chain[:-1] if node in graph.ends(edge)]
        more = self._more_clues(chain, {*edges, *piece.extra, anchor}, rng)
        hidden = [graph.names[node] for node in (chain if anchor is not None else chain[1:])]
        for count in range(len(more) + 1):
            about: dict[int, list[Statement]] = {node: [] for node in chain}
            for node, stated in (*hanging, *more[:count]):
                about[node].append(stated)
            statements = [*first, *about[chain[0]]]
            for node, edge in zip(chain[1:], edges, strict=True):  # a clue follows the statement that its entity appears in
                statements += [graph.statement(edge), *about[node]]
            yield self._drafted(piece, [*statements, *([dose] if dose else [])], hidden, chain[-1], dose, rng)

    def _drafted(
        self,
        piece: Subgraph,
        statements: list[Statement],
        hidden: list[str],
        end: int,
        dose: Statement | None,
        rng: random.Random,
    ) -> Draft:
        blanks = {name: Blank(number, self._kind(name)) for number, name in enumerate(hidden, 1)}
        asked = blanks[self.graph.names[end]] if dose is None else Blank(len(hidden) + 1)

        def term(name: str, stated: Statement) -> Term:
            if stated is dose and name == stated.object:
                return asked
            rough = vague(name) if name == stated.object and name not in self.graph.numbers else name
            return blanks.get(name, name if rough == name else Vague(rough))

        clues = tuple(Clue(term(each.subject, each), each.relation, term(each.object, each)) for each in statements)
        weight = rng.randint(LIGHTEST_KG, HEAVIEST_KG) if dose is not None else None
        return Draft(
            clues=clues, statements=tuple(statements), asked=asked, hidden=frozenset(hidden),
            answer=self.graph.names[end] if dose is None else dose.object, specialty=self._specialty(piece, end),
            sampler=piece.kind, hops=piece.hops + (dose is not None), weight_kg=weight,
        )  # fmt: skip

    def _kind(self, name: str) -> str:
        return self.graph.types[self.graph.numbers[name]]

    def _specialty(self, piece: Subgraph, end: int) -> str:
        """That of the answer; where it has none, that of most of the chain."""
        own = self.graph.specialties[end]
        counted = Counter(found for node in piece.chain if (found := self.graph.specialties[node]))
        return own or (counted.most_common(1)[0][0] if counted else "")

    def _dose(self, node: int, rng: random.Random) -> Statement | None:
        doses = [stated for stated in self.graph.attributes.get(node, ()) if DOSE_WORDS in stated.relation.casefold()]
        is_number = len(doses) == 1 and doses[0].object.replace(".", "", 1).isdecimal()  # no date, and nothing below zero
        return doses[0] if is_number and rng.random() < DOSED else None

    def _attribute(self, node: int, rng: random.Random) -> Statement | None:
        """A number or a date of an entity, for the question to say roughly."""
        kept = [
            stated
            for stated in self.graph.attributes.get(node, ())
            if DOSE_WORDS not in stated.relation.casefold() and vague(stated.object) != stated.object
        ]
        return rng.choice(kept) if kept else None

    def _rare_neighbour(self, chain: tuple[int, ...], rng: random.Random) -> int | None:
        """An edge from the first entity to the least-known entity beside the chain."""
        graph, on_chain = self.graph, set(chain)
        found = [
            edge
            for edge in graph.some_incident(chain[0], NEIGHBOURS, rng)
            if graph.other(edge, chain[0]) not in on_chain and graph.degree(graph.other(edge, chain[0])) <= RARE_NEIGHBOUR
        ]
        return min(found, key=lambda edge: (graph.degree(graph.other(edge, chain[0])), edge)) if found else None

    def _more_clues(self, chain: tuple[int, ...], used: set[int | None], rng: random.Random) -> list[tuple[int, Statement]]:
        """What to add while several answers fit: rough values of the answer and of what leads to it, then neighbours' names."""
        graph, on_chain = self.graph, set(chain)
        values = [(node, rough) for node in chain[:0:-1] if (rough := self._attribute(node, rng))]
        named = []
        for node in chain[1:]:
            edges = graph.some_incident(node, NEIGHBOURS, rng)
            beside = [edge for edge in edges if edge not in used and graph.other(edge, node) not in on_chain]
            named += [(node, graph.statement(edge)) for edge in beside[:1]]
        return [*values, *named][:MORE_CLUES]
