"""Did searching pay? Retrieval effectiveness, phase 2 of Med-R³ (arXiv 2507.23541), and StepSearch's gain per search."""

from __future__ import annotations

from collections import defaultdict

from rewards.earned import Earned
from rewards.extraction import graph_of, lines_of
from rewards.findings import Findings, Graph
from rewards.relevance import relevant, retrieved
from tasks.questions import Question
from trajectories.schema import Episode


def gold_recall(question: Question, episode: Episode, findings: Findings) -> Earned:
    """Share of the question's gold documents that some search found; 0 where the question names none."""
    gold = set(question.gold_documents)
    if not gold:
        return Earned(0.0, reason="the question names no gold document")
    hits = [document.turn for document in retrieved(episode) if document.id in gold]
    return _share(hits, len(gold), f"{len(hits)} of {len(gold)} gold documents found")


def gold_precision(question: Question, episode: Episode, findings: Findings) -> Earned:
    """Share of the retrieved documents that are gold; 0 where none was retrieved or the question names none."""
    found = retrieved(episode)
    gold = set(question.gold_documents)
    if not found or not gold:
        return Earned(0.0, reason="no document was retrieved" if gold else "the question names no gold document")
    hits = [document.turn for document in found if document.id in gold]
    return _share(hits, len(found), f"{len(hits)} of {len(found)} retrieved documents are gold")


def retrieval_proportion(
    question: Question, episode: Episode, findings: Findings, *, low: float = 0.5, high: float = 1.0
) -> Earned:
    """R_prop = |{t ∈ graph : t was retrieved}| / |graph|, rewarded by a target band (Med-R³, phase 2).

    Only what comes from a document that concerns the question counts as retrieved, or copying anything would pay: a reconstruction.

    1 from `low` to `high`, falling to 0 at no retrieval, and with a `high` below 1 at nothing but retrieval. A reconstruction: the
    paper's share is monotone, which pays for copying documents instead of thinking; half is where paying ends. 0 where the
    thinking states nothing.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"needs a band 0 < low ≤ high ≤ 1, got low {low} and high {high}")
    graph = graph_of(episode, findings)
    brought = _brought_by_relevant(graph, question, episode, findings)
    if not brought:
        return Earned(0.0, reason="nothing of what the thinking states was retrieved from a relevant document")
    proportion = len(brought) / len(graph)
    value = min(proportion / low, 1.0, (1 - proportion) / (1 - high) if high < 1 else 1.0)
    turns: dict[int, float] = defaultdict(float)
    for turn in brought:
        turns[turn] += value / len(brought)
    return Earned(value, dict(turns), f"{len(brought)} of {len(graph)} steps of the thinking were retrieved")


def information_gain(question: Question, episode: Episode, findings: Findings, *, redundancy: float = 1.0) -> Earned:
    """Gain − redundancy of every search t of n, added up, as in StepSearch (arXiv 2505.15107):

        gain_t = |gold documents first found by t| / |gold documents|
        redundancy_t = |documents of t that were seen before| / |documents of t| / n

    Reconstructions: gold documents are told by id instead of by similarity; redundancy is over n, so that the sum stays in
    −1 … 1. Where the question names no gold document, the gain is the judged relevance of t times its share of new documents, over n.
    """
    if not 0 <= redundancy <= 1:
        raise ValueError(f"needs 0 ≤ redundancy ≤ 1, got {redundancy}")
    gold = set(question.gold_documents)
    seen: set[str] = set()
    turns: dict[int, float] = defaultdict(float)
    gains = repeats = 0.0
    for search in episode.searches:
        found = set(search.document_ids)
        new = found - seen
        seen |= found
        if gold:
            gain = len(new & gold) / len(gold)
        else:
            gain = findings.relevance.get(search.turn, 0.0) * len(new) / max(1, len(found)) / len(episode.searches)
        repeated = redundancy * (len(found) - len(new)) / max(1, len(found)) / len(episode.searches)
        turns[search.turn] += gain - repeated
        gains, repeats = gains + gain, repeats + repeated
    value = max(-1.0, min(1.0, gains - repeats))  # thirds may add up to a hair over 1
    return Earned(value, dict(turns), f"gain {gains:.2f} − redundancy {repeats:.2f} over {len(episode.searches)} searches")


def _brought_by_relevant(graph: Graph, question: Question, episode: Episode, findings: Findings) -> list[int]:
    """The turns of the triples that come from relevant documents. A judge names a triple's turn only, and no document."""
    documents = relevant(question, episode, findings)
    if findings.graph is not None:
        turns = {document.turn for document in documents}
        return [triple.turn for triple in graph if triple.turn in turns]
    facts = {(line.subject, line.relation, line.object) for document in documents for line in lines_of(document.text)}
    return [triple.turn for triple in graph if triple.turn is not None and triple[:3] in facts]


def _share(turns_of_hits: list[int], of: int, reason: str) -> Earned:
    turns: dict[int, float] = defaultdict(float)
    for turn in turns_of_hits:
        turns[turn] += 1 / of
    return Earned(len(turns_of_hits) / of, dict(turns), reason)
