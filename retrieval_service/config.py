"""Settings of the index and of the retrieval deployment."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RetrievalConfig(BaseModel):
    """How documents are indexed and served."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(default="", description="folder of a built index; empty: built from the run's own corpus")
    encoder: str = Field(default="hashed-ngrams", description="'hashed-ngrams' needs no download")
    dimensions: int = Field(default=256, ge=16)
    factory: str = Field(default="Flat", description="FAISS factory string")
    nprobe: int = Field(default=32, ge=1, description="lists that an IVF factory looks into")
    ef_search: int = Field(default=64, ge=1, description="candidates that an HNSW factory keeps")
    mode: str = Field(default="hybrid", pattern="^(dense|lexical|hybrid)$")
    lexical_weight: float = Field(default=1.0, ge=0)
    dense_weight: float = Field(default=1.0, ge=0)
    replicas: int = Field(default=1, ge=1)
    replica_cpus: float = Field(default=1.0, ge=0, description="CPUs that Ray sets aside for one replica")
    max_batch: int = Field(default=256, ge=1)
    batch_wait_s: float = Field(default=0.002, ge=0)
    max_queued: int = Field(default=4096, ge=1, description="requests beyond this are rejected with a retry-after")
    cache_entries: int = Field(default=16_384, ge=0, description="answers that one replica remembers; 0: none")
    deadline_s: float = Field(default=10.0, gt=0, description="a search that takes longer voids its episode")
    coalesce_s: float = Field(default=0.002, ge=0, description="how long a client waits to send searches together")
    retries: int = Field(default=2, ge=0, description="times that a client sends searches again whose replica died")
    http_port: int = Field(default=0, ge=0, le=65535, description="HTTP on loopback beside the handle calls; 0: none")
    inject_delay_s: float = Field(default=0.0, ge=0, description="chaos: every batch takes this much longer")
    inject_latency_s: float = Field(
        default=0.0, ge=0, description="benchmarks: every call is answered this much later; those of a time wait together"
    )
    inject_failure_rate: float = Field(default=0.0, ge=0, le=1, description="chaos: share of searches that fail")

    @model_validator(mode="after")
    def _one_half_counts(self) -> Self:
        if self.lexical_weight == self.dense_weight == 0:
            raise ValueError("lexical_weight and dense_weight are both 0: no document could ever be found")
        return self
