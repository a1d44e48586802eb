"""How fast is the large world written, a graph of a million edges read, and subgraphs cut out of it? Seconds are a core's own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from bench.harness import Result, figure, ratio
from tasks.atlas.config import AtlasConfig
from tasks.atlas.world import Atlas
from tasks.graph.knowledge import KnowledgeGraph
from tasks.graph.sampling import SAMPLERS, Bounds
from tasks.graph.triples import Triple

DOCUMENTS, DOCUMENTS_S = 100_000, 60
ENTITIES, EDGES = 200_000, 1_000_000
CHAINS_PER_S = 50
CUTS = 200  # subgraphs of each sampler
RELATIONS = 20


def measure() -> tuple[list[Result], list[Result]]:
    """Figures and ratios, for `medr3 bench data`."""
    world = _seconds(lambda: sum(1 for atlas in Atlas.pair(AtlasConfig(documents=DOCUMENTS)) for _ in atlas.documents()))
    graph: KnowledgeGraph | None = None

    def read() -> None:
        nonlocal graph
        graph, _ = KnowledgeGraph.build(_triples())

    building = _seconds(read)
    assert graph is not None, "it was just read"
    rates = {name: _cuts_per_s(graph, name) for name in SAMPLERS}
    figures = [
        figure(f"{DOCUMENTS:,} documents of the large world", world, "s"),
        figure(f"a graph of {len(graph):,} edges built from triples", building, "s"),
        *(figure(f"{name} out of it", value, "subgraphs/s") for name, value in rates.items()),
    ]
    return figures, [
        ratio("seconds of the large world, over what is allowed", world / DOCUMENTS_S, 1.0, at_most=True),
        ratio("longest chains a second, over the goal", rates["max_chain"] / CHAINS_PER_S, 1.0),
    ]


def _triples() -> Iterator[Triple]:
    """Ends are drawn as in grown graphs: a few entities are hubs of thousands of edges."""
    rng = random.Random(0)
    for number in range(EDGES):
        yield Triple(f"e{rng.randrange(ENTITIES)}", f"r{number % RELATIONS}", f"e{int(ENTITIES * rng.random() ** 3)}")


def _cuts_per_s(graph: KnowledgeGraph, name: str) -> float:
    rng, sampler = random.Random(1), SAMPLERS[name]
    seconds = _seconds(lambda: [sampler(graph, rng.randrange(len(graph.names)), rng, Bounds(2, 6)) for _ in range(CUTS)])
    return CUTS / seconds


def _seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started
