"""Where the literature of the world contradicts itself on what a question asks, and on which side an answer rested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from actors.messages import Examined
from medr3.evaluation.statistics import Interval
from medr3.observe.record import wilson
from tasks.questions import Question
from tasks.world import Universe, World


class Dispute(NamedTuple):
    """Documents on one fact: the strongest, which tells the truth, and the weaker ones that contradict it."""

    better: str
    rivals: frozenset[str]


class Rested(NamedTuple):
    """Over all episodes: disputes whose both sides were found, those where one was restated, and where it was the better alone."""

    met: int
    decided: int
    on_better: int

    @property
    def share_on_better(self) -> Interval | None:
        """Of those that were decided, with Wilson's interval; None where there were none.

        Example:
            >>> Rested(met=9, decided=4, on_better=2).share_on_better.mean
            0.5
        """
        if not self.decided:
            return None
        share = self.on_better / self.decided
        return Interval(share, *wilson(share, self.decided))


def disputes(world: World, question: Question) -> list[Dispute]:
    """The disputes on a question's way to its answer.

    Example:
        >>> from tasks.config import WorldConfig
        >>> world = World("test", WorldConfig(), held_out=True)
        >>> found = [dispute for i in range(20) for dispute in disputes(world, world.question("world/joint", i))]
        >>> all(dispute.rivals and dispute.better not in dispute.rivals for dispute in found), len(found) > 0
        (True, True)
    """
    found = []
    for subject, relation, value in {edge for graph in question.reference_graphs for edge in graph}:
        documents = world.facts[relation, subject].documents
        rivals = frozenset(document.id for document in documents if document.text.split()[-2] != value)
        if rivals:
            found.append(Dispute(documents[0].id, rivals))
    return found


def disputes_of(universe: Universe, questions: Iterable[Question]) -> dict[str, list[Dispute]]:
    """By question id; questions of other data sets have none."""
    worlds = {world.collection: world for world in universe.held_out.values()}
    return {
        question.id: disputes(worlds[question.collection], question)
        for question in questions
        if question.collection in worlds and question.source.startswith("world/")
    }


def rested(records: Iterable[Examined], known: dict[str, list[Dispute]]) -> Rested:
    """Only disputes that an episode really met count: who found one side had no choice."""
    met = decided = on_better = 0
    for record in records:
        found, restated = set(record.retrieved), set(record.cited)
        for dispute in known.get(record.question_id, ()):
            if dispute.better not in found or not dispute.rivals & found:
                continue
            met += 1
            if dispute.better in restated or dispute.rivals & restated:
                decided += 1
                on_better += dispute.better in restated and not dispute.rivals & restated
    return Rested(met, decided, on_better)
