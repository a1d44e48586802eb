"""Five ways to cut a small piece out of a knowledge graph, each with a chain that a question can follow.

::

    max_chain              the longest simple path that a bounded search finds around the seed
    augmented_chain        that chain, and statements that hang on it
    community_core_path    a path that starts in the densest part of the seed's community and never leaves the community
    dual_core_bridge       from the core of one community to the core of another, over one edge between them
    mixed                  one of these, by chance

All are functions of graph, seed entity and random generator, and of nothing else: the same three give the same piece.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tasks.graph.knowledge import KnowledgeGraph

FANOUT = 8  # edges of one entity that a walk looks at: a hub would fill the piece with its own kind
CHAIN_ENTITIES = 40  # in which the longest path is looked for: four hops away, most entities are strangers anyway
COMMUNITY_ENTITIES = 120  # communities of a few dozen entities show in so many
SEARCH_STEPS = 1_500  # of the search for the longest path, which is exponential: a few milliseconds
PROPAGATIONS = 8  # rounds until labels stand still, nearly always
AUGMENTED = 3  # statements that hang on an augmented chain

Adjacency = Mapping[int, Sequence[tuple[int, int]]]
"""Entity → its neighbours, each with the edge that leads there."""


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A chain of entities, `edges[i]` between `chain[i]` and `chain[i + 1]`, and edges that hang on it."""

    kind: str
    chain: tuple[int, ...]
    edges: tuple[int, ...]
    extra: tuple[int, ...] = ()
    communities: Mapping[int, int] = field(default_factory=dict)  # of the chain's entities, where the sampler looks at them
    bridge: int | None = None  # the edge between two communities

    @property
    def hops(self) -> int:
        return len(self.edges)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long chains may be."""

    min_hops: int = 2
    max_hops: int = 6


Sampler = Callable[[KnowledgeGraph, int, random.Random, Bounds], Subgraph | None]
"""None where there is no such piece around the seed."""


def max_chain(graph: KnowledgeGraph, seed: int, rng: random.Random, bounds: Bounds = Bounds()) -> Subgraph | None:
    """The longest simple path through the seed that the bounded search finds.

    Example:
        >>> from tasks.graph.triples import Triple
        >>> graph, _ = KnowledgeGraph.build([Triple("a", "r", "b"), Triple("c", "r", "b"), Triple("c", "r", "d")])
        >>> [graph.names[node] for node in max_chain(graph, 0, random.Random(0)).chain]
        ['a', 'b', 'c', 'd']
    """
    near = neighbourhood(graph, seed, rng, CHAIN_ENTITIES)
    chain = longest_path(near, seed, bounds.max_hops)
    if len(chain) <= bounds.max_hops:  # the seed need not be an end
        taken = set(chain[1:])
        rest = {node: [step for step in steps if step[0] not in taken] for node, steps in near.items()}
        back = longest_path(rest, seed, bounds.max_hops - len(chain) + 1)
        chain = [*reversed(back[1:]), *chain]
    return _along("max_chain", near, chain, bounds)


def augmented_chain(graph: KnowledgeGraph, seed: int, rng: random.Random, bounds: Bounds = Bounds()) -> Subgraph | None:
    """The longest chain, with a few statements about its entities that lead off it."""
    found = max_chain(graph, seed, rng, bounds)
    if found is None:
        return None
    on_chain = set(found.chain)
    extra: list[int] = []
    for node in rng.sample(found.chain, len(found.chain)):
        for edge in graph.some_incident(node, FANOUT, rng):
            if graph.other(edge, node) not in on_chain and edge not in extra:
                extra.append(edge)
                break
    return Subgraph("augmented_chain", found.chain, found.edges, tuple(extra[:AUGMENTED])) if extra else None


def community_core_path(graph: KnowledgeGraph, seed: int, rng: random.Random, bounds: Bounds = Bounds()) -> Subgraph | None:
    """A longest path from the core of the seed's community, within the community."""
    import rustworkx as rx

    near = neighbourhood(graph, seed, rng, COMMUNITY_ENTITIES)
    labels = communities(near, rng)
    inside = _within(near, {node for node in near if labels[node] == labels[seed]})
    if len(inside) <= bounds.min_hops:
        return None
    nodes = sorted(inside)
    places = {node: place for place, node in enumerate(nodes)}
    small = rx.PyGraph()
    small.add_nodes_from(nodes)
    small.add_edges_from_no_data([(places[a], places[b]) for a in nodes for b, _ in inside[a] if a < b])
    cores: Any = rx.core_number(small)  # by place; its stub says it were a number
    start = max(nodes, key=lambda node: (cores[places[node]], len(inside[node]), -node))
    found = _along("community_core_path", inside, longest_path(inside, start, bounds.max_hops), bounds)
    return found and _labelled(found, labels)


def dual_core_bridge(graph: KnowledgeGraph, seed: int, rng: random.Random, bounds: Bounds = Bounds()) -> Subgraph | None:
    """From the busiest entity of the seed's community to that of a neighbouring one, crossing between them exactly once."""
    near = neighbourhood(graph, seed, rng, COMMUNITY_ENTITIES)
    labels = communities(near, rng)
    home = labels[seed]
    crossings = [
        (here, there, edge) for here in near if labels[here] == home for there, edge in near[here] if labels[there] != home
    ]
    for here, there, edge in rng.sample(crossings, len(crossings)):
        ways = [_to_core(_within(near, {n for n in near if labels[n] == labels[end]}), end) for end in (here, there)]
        chain = [*reversed(ways[0]), *ways[1]]
        if bounds.min_hops < len(chain) <= bounds.max_hops + 1:
            found = _along("dual_core_bridge", near, chain, bounds)
            if found is not None:
                labelled = _labelled(found, labels)
                return Subgraph(labelled.kind, labelled.chain, labelled.edges, (), labelled.communities, edge)
    return None


def mixed(graph: KnowledgeGraph, seed: int, rng: random.Random, bounds: Bounds = Bounds()) -> Subgraph | None:
    """Whatever of the four there is around the seed, in an order by chance."""
    for sampler in rng.sample(PURE, len(PURE)):
        found = sampler(graph, seed, rng, bounds)
        if found is not None:
            return found
    return None


PURE: tuple[Sampler, ...] = (max_chain, augmented_chain, community_core_path, dual_core_bridge)
SAMPLERS: dict[str, Sampler] = {sampler.__name__: sampler for sampler in (*PURE, mixed)}


def neighbourhood(graph: KnowledgeGraph, seed: int, rng: random.Random, size: int) -> dict[int, list[tuple[int, int]]]:
    """Up to `size` entities around the seed, nearest first, with edges among them; one edge for each pair."""
    reached, queue = {seed}, deque([seed])
    pairs: dict[tuple[int, int], int] = {}
    while queue:
        node = queue.popleft()
        for edge in graph.some_incident(node, FANOUT, rng):
            other = graph.other(edge, node)
            if other not in reached:
                if len(reached) >= size:
                    continue
                reached.add(other)
                queue.append(other)
            pairs.setdefault((min(node, other), max(node, other)), edge)
    near: dict[int, list[tuple[int, int]]] = {node: [] for node in sorted(reached)}
    for (a, b), edge in sorted(pairs.items()):
        near[a].append((b, edge))
        near[b].append((a, edge))
    return near


def longest_path(near: Adjacency, start: int, most: int) -> list[int]:
    """The longest simple path from an entity, of at most so many edges, that a depth-first search of `SEARCH_STEPS` steps finds.

    Entities with few neighbours first (Warnsdorff's rule): who leaves them for later finds them cut off.
    """
    best, path, on_path = [start], [start], {start}
    stack = [iter(_sparse_first(near, start))]
    for _ in range(SEARCH_STEPS):
        following = next((node for node in stack[-1] if node not in on_path), None)
        if following is None:
            stack.pop()
            on_path.discard(path.pop())
            if not stack:
                break
            continue
        path.append(following)
        on_path.add(following)
        stack.append(iter(_sparse_first(near, following)))
        if len(path) > len(best):
            best = list(path)
            if len(best) > most:
                break
    return best


def _sparse_first(near: Adjacency, node: int) -> list[int]:
    return sorted((other for other, _ in near[node]), key=lambda other: (len(near[other]), other))


def communities(near: Adjacency, rng: random.Random) -> dict[int, int]:
    """Label propagation: every entity takes the label that most of its neighbours have; where labels tie it keeps its own, or draws.

    Not the least of those that tie: one label then floods what is connected before communities can form.
    """
    labels = {node: node for node in near}
    order = list(near)
    for _ in range(PROPAGATIONS):
        rng.shuffle(order)
        moved = False
        for node in order:
            votes = Counter(labels[other] for other, _ in near[node])
            if votes:
                best = sorted(label for label, count in votes.items() if count == max(votes.values()))
                if labels[node] not in best:
                    labels[node], moved = rng.choice(best), True
        if not moved:
            break
    return labels


def _within(near: Adjacency, nodes: set[int]) -> dict[int, list[tuple[int, int]]]:
    return {node: [step for step in near[node] if step[0] in nodes] for node in near if node in nodes}


def _to_core(inside: Adjacency, start: int) -> list[int]:
    """The shortest way from an entity to the busiest one of its community."""
    core = max(inside, key=lambda node: (len(inside[node]), -node))
    before: dict[int, int] = {start: start}
    queue = deque([start])
    while queue and core not in before:
        node = queue.popleft()
        for other, _ in inside[node]:
            if other not in before:
                before[other] = node
                queue.append(other)
    if core not in before:
        return [start]  # propagation can tear a community apart: its own end is then as near as one gets
    way = [core]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def _along(kind: str, near: Adjacency, chain: Iterable[int], bounds: Bounds) -> Subgraph | None:
    nodes = tuple(chain)
    if not bounds.min_hops <= len(nodes) - 1 <= bounds.max_hops:
        return None
    steps: dict[int, dict[int, int]] = defaultdict(dict)
    for node in nodes:
        steps[node] = dict(near[node])
    return Subgraph(kind, nodes, tuple(steps[a][b] for a, b in pairwise(nodes)))


def _labelled(found: Subgraph, labels: Mapping[int, int]) -> Subgraph:
    return Subgraph(found.kind, found.chain, found.edges, found.extra, {node: labels[node] for node in found.chain})
