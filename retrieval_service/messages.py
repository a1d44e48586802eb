"""What travels between the retrieval client and the replicas, besides queries and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retrieval_service.types import RetrievalError, RetrievalRejected, SearchResult, UnknownCollection


@dataclass(frozen=True, slots=True)
class SearchFailure:
    """Takes the place of one result in a batch whose other queries were answered."""

    reason: str
    unknown_collection: bool = False
    rejected: bool = False

    def error(self) -> RetrievalError:
        """The failure as its caller sees it."""
        if self.unknown_collection:
            return UnknownCollection(self.reason)
        return RetrievalRejected(self.reason) if self.rejected else RetrievalError(self.reason)


Answer = SearchResult | SearchFailure


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What one replica has done since it started; times are of its last few thousand batches, in milliseconds."""

    pid: int
    index_hash: str
    queries: int = 0
    batches: int = 0
    cached: int = 0  # answered from memory
    shared: int = 0  # answered by the search that another caller's equal query had started
    failed: int = 0
    degraded: int = 0
    rejected: int = 0
    waiting: int = 0  # queries that have no answer at this moment
    queries_per_s: float = 0.0  # over the last minute
    batch_size: float = 0.0  # mean queries that were searched together
    queue_p50_ms: float = 0.0  # from a call's arrival until its search began
    queue_p99_ms: float = 0.0
    p50_ms: float = 0.0  # of one batch's search
    p99_ms: float = 0.0
    stages_ms: Mapping[str, float] = field(default_factory=dict)  # encode, dense, lexical, fuse, fetch: median of the batches
    swaps: int = 0
    refused: str = ""  # why the last index that it was told to take was not taken


def as_metrics(replicas: Sequence[ReplicaStats]) -> dict[str, float]:
    """The service as one set of figures: counts and rates are sums, times those of the slowest replica.

    Example:
        >>> one = ReplicaStats(1, "hash", queries=3, cached=1, queries_per_s=2.0, p99_ms=5.0, stages_ms={"encode": 1.0})
        >>> figures = as_metrics([one, one])
        >>> figures["retrieval/queries"], figures["retrieval/cache_share"], figures["retrieval/p99_ms"]
        (6.0, 0.3333333333333333, 5.0)
    """
    sums = ("queries", "batches", "failed", "degraded", "rejected", "waiting", "queries_per_s")
    slowest = ("queue_p50_ms", "queue_p99_ms", "p50_ms", "p99_ms")
    queries = sum(each.queries for each in replicas)
    batches = sum(each.batches for each in replicas)
    figures = {name: float(sum(getattr(each, name) for each in replicas)) for name in sums}
    figures |= {name: float(max((getattr(each, name) for each in replicas), default=0.0)) for name in slowest}
    figures["batch_size"] = sum(each.batch_size * each.batches for each in replicas) / max(1, batches)
    figures["cache_share"] = sum(each.cached + each.shared for each in replicas) / max(1, queries)
    for stage in sorted({stage for each in replicas for stage in each.stages_ms}):
        figures[f"{stage}_ms"] = max(each.stages_ms.get(stage, 0.0) for each in replicas)
    return {f"retrieval/{name}": value for name, value in figures.items()}
