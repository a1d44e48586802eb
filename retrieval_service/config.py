"""Settings of the index and of the retrieval deployment."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


def is_loopback(host: str) -> bool:
    """Whether only this machine's own programs reach what binds to it.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("")
        (True, True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may stand for any address


class RetrievalConfig(BaseModel):
    """How documents are indexed and served."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(default="", description="folder of a built index; empty: built from the run's own corpus")
    encoder: str = Field(
        default="hashed-ngrams", description="'hashed-ngrams' needs no download; else the folder of a transformers model"
    )
    encoder_pooling: Literal["", "cls", "mean", "last"] = Field(
        default="", description="how a model's token vectors become one; empty: what its folder says"
    )
    query_prefix: str | None = Field(default=None, description="before every query, as E5 wants it; none: what the folder says")
    document_prefix: str | None = Field(default=None, description="before every document; none: what the folder says")
    dimensions: int = Field(default=512, ge=16, description="of hashed-ngrams; a model has its own")
    factory: str = Field(default="auto", description="FAISS factory string; auto: by the number of documents")
    nprobe: int = Field(default=32, ge=1, description="lists that an IVF factory looks into")
    ef_search: int = Field(default=64, ge=1, description="candidates that an HNSW factory keeps")
    mode: str = Field(default="hybrid", pattern="^(dense|lexical|hybrid)$")
    lexical_weight: float = Field(default=1.0, ge=0)
    dense_weight: float = Field(default=1.0, ge=0)
    authority_weight: float = Field(
        default=0.0, ge=0, le=1, description="share of the evidence level in the score of a hybrid search; 0.6 is the preset"
    )
    reranker: str = Field(default="", description="folder of a cross-encoder that orders the best hybrid candidates anew")
    rerank_candidates: int = Field(default=50, ge=1, le=100)
    replicas: int = Field(default=1, ge=1)
    replica_cpus: float = Field(default=1.0, ge=0, description="CPUs that Ray sets aside for one replica")
    replica_memory_gib: float = Field(
        default=0, ge=0, description="main memory that Ray sets aside for one replica: it holds the whole index; 0: none"
    )
    replica_resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources that one replica takes")
    max_batch: int = Field(default=256, ge=1)
    batch_wait_s: float = Field(
        default=0.0, ge=0, description="how long a replica that has nothing to do waits for more than the first search"
    )
    max_queued: int = Field(default=4096, ge=1, description="requests beyond this are rejected with a retry-after")
    cache_entries: int = Field(default=16_384, ge=0, description="answers that one replica remembers; 0: none")
    deadline_s: float = Field(default=10.0, gt=0, description="a search that takes longer voids its episode")
    coalesce_s: float = Field(default=0.002, ge=0, description="how long a client waits to send searches together")
    retries: int = Field(default=2, ge=0, description="times that a client sends searches again whose replica died")
    http_port: int = Field(default=0, ge=0, le=65535, description="HTTP and MCP beside the handle calls; 0: none")
    http_host: str = Field(default="127.0.0.1", description="address that HTTP binds to; beyond loopback only with a token")
    http_token_file: str = Field(
        default="", description="file with the token that HTTP callers must send; empty: none is asked"
    )
    inject_delay_s: float = Field(default=0.0, ge=0, description="chaos: every batch takes this much longer")
    inject_latency_s: float = Field(
        default=0.0, ge=0, description="benchmarks: every call is answered this much later; those of a time wait together"
    )
    inject_failure_rate: float = Field(default=0.0, ge=0, le=1, description="chaos: share of searches that fail")

    @model_validator(mode="after")
    def _strangers_need_a_token(self) -> Self:
        if self.http_port and not self.http_token_file and not is_loopback(self.http_host):
            raise ValueError(
                f"http_host {self.http_host!r} can be reached from other machines: set http_token_file (--token-file), or bind to 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _one_half_counts(self) -> Self:
        if self.lexical_weight == self.dense_weight == 0:
            raise ValueError("lexical_weight and dense_weight are both 0: no document could ever be found")
        return self
