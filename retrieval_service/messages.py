"""What travels between the retrieval client and the replicas, besides queries and results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SearchFailure:
    """Takes the place of one result in a batch whose other queries were answered."""

    reason: str
    unknown_collection: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What one replica has done since it started; percentiles are of its last few thousand batches, in milliseconds."""

    pid: int
    index_hash: str
    queries: int
    batches: int
    cached: int
    failed: int
    p50_ms: float
    p99_ms: float
