"""Does the thinking reason along a reference? Med-R³'s reasoning graph, phase 1 (arXiv 2507.23541).

For each reference graph k (10 at most), with weights α = β = γ = 1,

    S_k = (α · logic_k + β · semantic_k + γ · statistic_k) / (α + β + γ)

    logic      Jaccard of the two sets of directed paths
    semantic   cosine of two embeddings, of the thinking and of the reference
    statistic  Jaccard of the two sets of entities

and the reward is the largest S_k. Reconstructions: a path is the sequence of its entities, from one hop on, because relations are
worded freely and a one-hop question has no longer path; names are compared once normalised; without an encoder the cosine is
that of word counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

from rewards.earned import Earned
from rewards.extraction import graph_of
from rewards.findings import Findings
from rewards.phrases import normalise
from rewards.text import own_thinking
from tasks.questions import Question
from trajectories.schema import Episode

MAX_REFERENCES = 10
MAX_HOPS = 6  # the longest chains of the four methods have five
MAX_PATHS = 1_000  # a dense graph has exponentially many; a chain of six hops has 21
_WORD = re.compile(r"\w+")

Reference = tuple[tuple[str, str, str], ...]
Path = tuple[str, ...]


class Likeness(NamedTuple):
    """How alike the thinking and one reference are, each term in 0 … 1."""

    logic: float
    semantic: float
    statistic: float

    def mean(self, weights: Sequence[float]) -> float:
        return sum(weight * term for weight, term in zip(weights, self, strict=True)) / sum(weights)


class Shape(NamedTuple):
    """What is compared of a graph."""

    paths: frozenset[Path]
    entities: frozenset[str]


def paths(edges: Iterable[tuple[str, str]], max_hops: int = MAX_HOPS, max_paths: int = MAX_PATHS) -> frozenset[Path]:
    """Every simple directed path of one to `max_hops` hops; where they are more than `max_paths`, the longest go first.

    Example:
        >>> sorted(paths([("a", "b"), ("b", "c")]))
        [('a', 'b'), ('a', 'b', 'c'), ('b', 'c')]
    """
    following: defaultdict[str, set[str]] = defaultdict(set)
    for start, end in edges:
        if start != end:
            following[start].add(end)
    order = {start: sorted(ends) for start, ends in sorted(following.items())}  # the cap cuts the same paths in every process
    found: list[Path] = []
    frontier: list[Path] = [(start,) for start in order]
    for _ in range(max_hops):
        longer: list[Path] = []
        for path in frontier:
            longer += [(*path, end) for end in order.get(path[-1], ()) if end not in path]
            if len(found) + len(longer) >= max_paths:
                return frozenset((found + longer)[:max_paths])
        found += longer
        frontier = longer
    return frozenset(found)


def jaccard(one: Set[object], other: Set[object]) -> float:
    """Shared over all; two empty sets share nothing."""
    return len(one & other) / len(one | other) if one and other else 0.0


def cosine_of_counts(one: Counter[str], other: Counter[str]) -> float:
    """The cosine of two vectors of word counts, 0 where either has no word."""
    if not one or not other:
        return 0.0
    dot = sum(count * one[word] for word, count in other.items())
    lengths = math.sqrt(sum(n * n for n in one.values())) * math.sqrt(sum(n * n for n in other.values()))
    return min(1.0, dot / lengths)


def as_text(reference: Reference) -> str:
    """A reference graph as the text that is embedded."""
    return " ".join(f"{subject} {relation} {value} ." for subject, relation, value in reference)


def likenesses(question: Question, episode: Episode, findings: Findings) -> list[Likeness]:
    """One for each of the question's reference graphs."""
    references = question.reference_graphs[:MAX_REFERENCES]
    graph = graph_of(episode, findings) if references else ()
    if not graph:  # thinking that states nothing is like no graph, whatever its words
        return [Likeness(0.0, 0.0, 0.0)] * len(references)
    own = _shape(tuple(triple[:3] for triple in graph))
    lexical = len(findings.similarity) < len(references)
    words = _words(own_thinking(episode.text)) if lexical else Counter()
    found = []
    for k, reference in enumerate(references):
        shape = _shape(reference)
        semantic = cosine_of_counts(words, _reference_words(reference)) if lexical else _within_one(findings.similarity[k])
        found.append(Likeness(jaccard(own.paths, shape.paths), semantic, jaccard(own.entities, shape.entities)))
    return found


def reasoning_graph(
    question: Question, episode: Episode, findings: Findings, *, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Earned:
    """The best S_k; `weights` are α, β, γ for logic, semantic and statistic."""
    if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
        raise ValueError(f"needs three weights ≥ 0 that are not all 0, for logic, semantic and statistic, got {list(weights)}")
    return _best(question, episode, findings, weights, lambda likeness: likeness.mean(weights))


def graph_logic(question: Question, episode: Episode, findings: Findings) -> Earned:
    """The logic term of the reference that is the best with equal weights, to be logged beside the whole."""
    return _best(question, episode, findings, (1.0, 1.0, 1.0), lambda likeness: likeness.logic)


def graph_semantic(question: Question, episode: Episode, findings: Findings) -> Earned:
    """The semantic term of the same reference."""
    return _best(question, episode, findings, (1.0, 1.0, 1.0), lambda likeness: likeness.semantic)


def graph_statistic(question: Question, episode: Episode, findings: Findings) -> Earned:
    """The statistic term of the same reference."""
    return _best(question, episode, findings, (1.0, 1.0, 1.0), lambda likeness: likeness.statistic)


def _best(
    question: Question, episode: Episode, findings: Findings, weights: Sequence[float], term: Callable[[Likeness], float]
) -> Earned:
    likeness = max(
        likenesses(question, episode, findings), key=lambda each: each.mean(weights), default=Likeness(0.0, 0.0, 0.0)
    )
    if not question.reference_graphs:
        return Earned(0.0, reason="the question has no reference graph")
    logic, semantic, statistic = likeness
    return Earned(min(1.0, term(likeness)), reason=f"logic {logic:.2f}, semantic {semantic:.2f}, statistic {statistic:.2f}")


@lru_cache(maxsize=4096)  # the episodes of a group share their references, and often their graphs
def _shape(graph: Reference) -> Shape:
    edges = [(normalise(subject), normalise(value)) for subject, _, value in graph]
    edges = [(start, end) for start, end in edges if start and end]
    return Shape(paths(edges), frozenset(name for edge in edges for name in edge))


@lru_cache(maxsize=4096)
def _reference_words(reference: Reference) -> Counter[str]:
    return _words(as_text(reference))


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def _within_one(cosine: float) -> float:
    """A cosine as a reward: opposite is as unlike as unrelated, and what is no number is unlike, too."""
    return min(1.0, cosine) if cosine > 0 else 0.0
