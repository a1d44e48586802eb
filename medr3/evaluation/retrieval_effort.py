"""What approximate search costs in recall and gains in speed, on the vectors of a built index: the same queries, several factories."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medr3.observe.charts import COLOURS, Chart, Series, standalone
from retrieval_service.dense import DenseIndex, overlap
from retrieval_service.types import LARGEST_K
from retrieval_service.vectors import VectorShards, stored

PLACES = 32
LEAST_SECONDS = 0.3  # of searching per point, or the clock decides
EFFORTS = (4, 16, 64, 128, 256, 512)


class Kind(NamedTuple):
    """A factory, and which of its efforts are tried: `ef_search` of a graph, `nprobe` of lists, none of exact search."""

    factory: str
    effort: str = ""
    from_effort: int = 1


KINDS = (
    Kind("Flat"),
    Kind("HNSW32,SQ8", "ef_search", 128),  # a graph looks at as many as it is asked for in any case
    Kind("IVF{lists},SQ8", "nprobe"),
    Kind("IVF{lists},PQ{codes}x4fs,RFlat", "nprobe"),
)


def sweep(index_folder: Path, queries: npt.NDArray[np.float32], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Recall at 32 against exact search, and queries a second in one batch, for every kind and effort.

    As a search does it: as many candidates as the largest answer has, scored again by the vectors as they were encoded.
    """
    vectors = stored(index_folder)
    shards = VectorShards([vectors])
    exact = shards.nearest(queries, PLACES)
    lists = 2 ** max(4, round(math.log2(4 * math.sqrt(shards.rows))))
    points: list[dict[str, Any]] = []
    for kind in KINDS:
        factory = kind.factory.format(lists=lists, codes=shards.dimensions // 4)
        tell(f"building {factory}")
        built = DenseIndex.build(shards, factory, 1, 1)
        for effort in [e for e in EFFORTS if kind.from_effort <= e <= lists] if kind.effort else [0]:
            index = built.searching(max(effort, 1), max(effort, 1), vectors if effort else None)
            found = index.search(queries, 0, shards.rows, LARGEST_K).rows[:, :PLACES]
            points.append(
                {
                    "factory": factory, "effort": f"{kind.effort} {effort}" if effort else "exact",
                    "recall": overlap(exact, found), "per_second": _rate(index, queries, shards.rows),
                }
            )  # fmt: skip
    return points


def _rate(index: DenseIndex, queries: npt.NDArray[np.float32], rows: int) -> float:
    rounds, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < LEAST_SECONDS:
        index.search(queries, 0, rows, LARGEST_K)
        rounds += 1
    return rounds * len(queries) / taken


def plot(points: list[dict[str, Any]]) -> str:
    """Queries a second over recall, as an SVG file; points of less than half the recall are left out."""
    factories = list(dict.fromkeys(point["factory"] for point in points))
    series = [
        Series(
            name,
            sorted((100 * p["recall"], p["per_second"]) for p in points if p["factory"] == name and p["recall"] >= 0.5),
            colour=place % COLOURS,
            dots=True,
            faint=place >= COLOURS,
        )
        for place, name in enumerate(factories)
    ]
    return standalone(Chart("Speed", "queries/s", series, x_name="recall at 32, %"))
