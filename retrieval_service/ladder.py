"""Which kind of FAISS index a corpus gets. Data, from exact to compressed; `--factory` overrules it.

What decides is what the search has to read: exact search reads every vector for every query, a graph reads a few hundred but must
lie in memory, and inverted lists of short codes can stay on the disk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from retrieval_service.config import RetrievalConfig

AUTO = "auto"


class Rung(NamedTuple):
    """Up to so many documents, this factory string; `{lists}` and `{codes}` are filled in."""

    documents: float
    factory: str


LADDER = (
    Rung(1_000_000, "Flat"),  # exact; at a million vectors of 768 dimensions still 3 GB
    Rung(10_000_000, "HNSW32,SQ8"),  # a quarter of the memory and the links; recall at 32 of .996, measured on 200k × 768
    Rung(math.inf, "IVF{lists},PQ{codes}x4fs,Refine(SQ8)"),  # codes of half a byte; what they find is scored again
)
# Of a graph that is chosen here. The embedded encoder's vectors lie nearly at right angles to each other: over 20,000 documents of 512
# dimensions the graph finds .965 of the nearest 32 with 128 candidates and .982 with 512. Models' vectors need far fewer.
LEAST_EF_SEARCH = 512
_DIMENSIONS_PER_CODE = 4
_FEWEST_LISTS = 1024


def chosen(config: RetrievalConfig, documents: int, dimensions: int) -> RetrievalConfig:
    """The configuration with what `auto` stands for.

    Example:
        >>> made = chosen(RetrievalConfig(), 2_000_000, 512)
        >>> made.factory, made.ef_search, chosen(RetrievalConfig(factory="HNSW16"), 10, 512).ef_search
        ('HNSW32,SQ8', 512, 64)
    """
    if config.factory != AUTO:
        return config
    factory = choose(documents, dimensions)
    return config.model_copy(update={"factory": factory, "ef_search": effort(factory, config.ef_search)})


def effort(factory: str, ef_search: int) -> int:
    """What becomes of `ef_search` where the ladder has chosen the factory."""
    return max(ef_search, LEAST_EF_SEARCH) if factory.startswith("HNSW") else ef_search


def choose(documents: int, dimensions: int) -> str:
    """The factory string for a corpus.

    Example:
        >>> choose(100_000, 768), choose(2_000_000, 768), choose(24_000_000, 768)
        ('Flat', 'HNSW32,SQ8', 'IVF16384,PQ192x4fs,Refine(SQ8)')
    """
    rung = next(rung for rung in LADDER if documents <= rung.documents)
    # Four times the root of the count, as a power of two: lists then hold as many vectors as there are lists to compare with.
    lists = max(_FEWEST_LISTS, 2 ** math.floor(math.log2(4 * math.sqrt(documents))))
    return rung.factory.format(lists=lists, codes=max(1, dimensions // _DIMENSIONS_PER_CODE))
