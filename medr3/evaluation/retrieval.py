"""How well an index finds what labelled queries ask for: dense, lexical and hybrid, by subset, with intervals and latencies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from medr3.evaluation.statistics import Interval, Paired, bootstrap, paired_bootstrap
from retrieval_service.index import HybridIndex
from retrieval_service.measures import LabelledQuery, Quality, quality
from retrieval_service.types import SearchQuery

MODES = ("dense", "lexical", "hybrid")
ALL = "all"
BATCH = 64  # as a busy replica sees it
LONE_QUERIES = 200  # one after another, for the latency that a lone caller sees; enough for a p99 that means something


@dataclass(frozen=True)
class Cell:
    """One mode on one subset."""

    mode: str
    subset: str
    queries: int
    ndcg: Interval
    recall: Interval
    mrr: Interval


@dataclass(frozen=True)
class Speed:
    """Of one mode: queries a second in batches, and what a lone query waits, in milliseconds."""

    mode: str
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Figures:
    """What was measured. `gains` are hybrid minus the named half in nDCG, on the same queries, by subset."""

    index_hash: str
    documents: int
    k: int
    cells: list[Cell]
    gains: dict[str, dict[str, Paired]]
    speeds: list[Speed]
    unknown_documents: int = 0
    effort: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        for cell, measured in zip(plain["cells"], self.cells, strict=True):
            cell |= {name: getattr(measured, name)._asdict() for name in ("ndcg", "recall", "mrr")}
        plain["gains"] = {
            subset: {half: {**gain.difference._asdict(), "p": gain.p} for half, gain in gains.items()}
            for subset, gains in self.gains.items()
        }
        return plain

    def markdown(self) -> str:
        """Tables for a page."""
        lines = [f"| subset | mode | queries | nDCG@{self.k} | recall@{self.k} | MRR@{self.k} |", "|---|---|---|---|---|---|"]
        for cell in self.cells:
            figures = " | ".join(each.shown(digits=4) for each in (cell.ndcg, cell.recall, cell.mrr))
            lines.append(f"| {cell.subset} | {cell.mode} | {cell.queries:,} | {figures} |")
        lines += ["", f"| subset | hybrid − | nDCG@{self.k} | p |", "|---|---|---|---|"]
        for subset, gains in self.gains.items():
            lines += [
                f"| {subset} | {half} | {gain.difference.shown(digits=4, signed=True)} | {gain.p:.3f} |"
                for half, gain in gains.items()
            ]
        lines += ["", f"| mode | queries/s, {BATCH} at a time | p50 ms, alone | p99 ms, alone |", "|---|---|---|---|"]
        lines += [f"| {s.mode} | {s.per_second:,.0f} | {s.p50_ms:.1f} | {s.p99_ms:.1f} |" for s in self.speeds]
        if self.effort:
            lines += ["", "| factory | effort | recall@32 | queries/s |", "|---|---|---|---|"]
            lines += [f"| {e['factory']} | {e['effort']} | {e['recall']:.4f} | {e['per_second']:,.0f} |" for e in self.effort]
        return "\n".join(lines) + "\n"


def measure(index: HybridIndex, queries: Sequence[LabelledQuery], k: int) -> Figures:
    """Runs every mode over all queries."""
    scored = {
        mode: [*map(lambda q, ids: quality(ids, q.relevant, k), queries, _answers(index, queries, mode, k))] for mode in MODES
    }
    subsets = {ALL: list(range(len(queries)))}
    for place, query in enumerate(queries):
        if query.subset:
            subsets.setdefault(query.subset, []).append(place)
    wanted = {name for query in queries for name in query.relevant}
    return Figures(
        index_hash=index.index_hash,
        documents=index.manifest.documents,
        k=k,
        cells=[_cell(mode, subset, [scored[mode][i] for i in places]) for subset, places in subsets.items() for mode in MODES],
        gains={
            subset: {
                half: paired_bootstrap([scored[half][i].ndcg for i in places], [scored["hybrid"][i].ndcg for i in places])
                for half in MODES[:2]
            }
            for subset, places in subsets.items()
        },
        speeds=[_speed(index, queries, mode, k) for mode in MODES],
        unknown_documents=len(index.missing(wanted)),
    )


def _asked(query: LabelledQuery, mode: str, k: int) -> SearchQuery:
    return SearchQuery(query=query.query, k=k, mode=mode, collection=query.collection)


def _answers(index: HybridIndex, queries: Sequence[LabelledQuery], mode: str, k: int) -> list[list[str]]:
    found = []
    for start in range(0, len(queries), BATCH):
        results = index.search([_asked(query, mode, k) for query in queries[start : start + BATCH]])
        found += [[hit.id for hit in result.hits] for result in results]
    return found


def _cell(mode: str, subset: str, scored: Sequence[Quality]) -> Cell:
    figures = (bootstrap([getattr(each, name) for each in scored]) for name in Quality._fields)
    return Cell(mode, subset, len(scored), *figures)


def _speed(index: HybridIndex, queries: Sequence[LabelledQuery], mode: str, k: int) -> Speed:
    """After `_answers`, so caches are warm."""
    started = time.perf_counter()
    _answers(index, queries, mode, k)
    together = time.perf_counter() - started
    alone = []
    for query in queries[:LONE_QUERIES]:
        started = time.perf_counter()
        index.search([_asked(query, mode, k)])
        alone.append((time.perf_counter() - started) * 1e3)
    p50, p99 = np.percentile(alone, (50, 99)).tolist()
    return Speed(mode, len(queries) / together, p50, p99)
