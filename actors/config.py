"""Settings of the rollout pool, of its engines, and of the episode protocol."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from rewards.config import JudgeConfig


class EngineConfig(BaseModel):
    """What vLLM is started with."""

    model_config = ConfigDict(extra="forbid")

    dtype: str = Field(default="float32", pattern="^(float32|bfloat16)$")
    max_model_len: int = Field(default=512, ge=32)
    max_num_seqs: int = Field(default=256, ge=1)
    kv_cache_mib: int = Field(default=256, ge=16)
    enforce_eager: bool = True
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0, description="GPUs of one engine; 0 on a CPU")
    cpu_threads: int = Field(default=2, ge=1, description="OpenMP threads of one CPU engine")
    start_timeout_s: float = Field(default=300, gt=0)


class RolloutConfig(BaseModel):
    """How many engines, how many groups, how old a sample may be."""

    model_config = ConfigDict(extra="forbid")

    engine: EngineConfig = EngineConfig()
    num_engines: int = Field(default=1, ge=1)
    group_size: int = Field(default=8, ge=1, description="episodes of one question")
    groups_per_step: int = Field(default=32, ge=1, description="questions of one learner step")
    max_staleness: int = Field(default=0, ge=0, description="0: synchronous; N: a token may be N versions old when trained")
    max_attempts: int = Field(default=3, ge=1, description="a group that fails this often is voided for good")
    group_timeout_s: float = Field(default=120, gt=0, description="lease of one group; after it the group goes elsewhere")
    update_timeout_s: float = Field(default=60, gt=0, description="an engine that has not acked new weights by then is fenced")
    reward_timeout_s: float = Field(default=30, gt=0, description="a group whose rewards take longer is voided")
    judge: JudgeConfig | None = Field(default=None, description="a model that judges where rules cannot; none: rules only")
    ping_timeout_s: float = Field(default=5, gt=0, description="a suspect engine that has not answered by then is replaced")
    max_engine_restarts: int = Field(
        default=5, ge=0, description="early deaths of one engine in a row before its place stays empty"
    )
    canary_tolerance: float = Field(default=1e-3, gt=0, description="largest log-probability difference of the canary")


class EpisodeBudget(BaseModel):
    """Bounds of one episode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retrieval: bool = True
    max_searches: int = Field(default=4, ge=0)
    top_k: int = Field(default=3, ge=1)
    max_passages: int | None = Field(default=None, ge=0, description="passages that an episode is shown in all; R3-RAG: 10")
    distinct_passages: bool = Field(
        default=False, description="what a search before has shown is not shown again; R3-RAG: true"
    )
    regenerations: int = Field(
        default=0, ge=0, description="how often a malformed turn is thrown away and sampled again before it counts; R3-RAG: 3"
    )
    max_turn_tokens: int = Field(default=96, ge=1)
    max_response_tokens: int = Field(default=256, ge=1, description="model and document tokens together, as in Med-R³")
