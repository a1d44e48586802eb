"""Settings of the rollout pool, of its engines, and of the episode protocol."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.autoscale_config import AutoscaleConfig
from actors.tools_config import ToolConfig, ToolName
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
    device: Literal["auto", "cpu"] = Field(
        default="auto",
        description="auto: a GPU where `gpus` asks for one; cpu: compute on the CPU whatever the scheduler counts",
    )
    gpus: float = Field(
        default=0, ge=0, description="GPUs of one tensor-parallel worker; 0 on a CPU; 0.5: shared with a learner"
    )
    resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources that one engine takes")
    cpu_threads: int = Field(default=2, ge=1, description="OpenMP threads of one worker of a CPU engine")
    start_timeout_s: float = Field(default=300, gt=0)

    @model_validator(mode="after")
    def _one_worker_per_gpu(self) -> Self:
        """Parts of GPUs add up to less than one GPU per worker, and the scheduler may find all the parts on the same one."""
        if self.tensor_parallel_size > 1 and self.gpus % 1:
            raise ValueError(
                f"gpus is {self.gpus:g} and tensor_parallel_size is {self.tensor_parallel_size}: workers of one engine cannot"
                " share GPUs; set gpus to 1"
            )
        return self

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu" or not self.gpus


class RolloutConfig(BaseModel):
    """How many engines, how many groups, how old a sample may be."""

    model_config = ConfigDict(extra="forbid")

    engine: EngineConfig = EngineConfig()
    num_engines: int = Field(default=1, ge=1)
    autoscale: AutoscaleConfig | None = Field(
        default=None, description="bounds between which the load decides; none: num_engines"
    )
    group_size: int = Field(default=8, ge=1, description="episodes of one question")
    groups_per_step: int = Field(default=32, ge=1, description="questions of one learner step")
    max_staleness: int = Field(default=0, ge=0, description="0: synchronous; N: a token may be N versions old when trained")
    wait_for_slow: bool = Field(
        default=True, description="the learner waits for slow groups rather than lose them as too old; false: they are dropped"
    )
    oversample: float = Field(
        default=1.0, ge=1, description="synchronous: so many times a batch is rolled out; the first to finish are the batch"
    )
    dynamic_sampling: float = Field(
        default=1.0,
        ge=1,
        description="up to so many times a batch is rolled out for one step, to replace groups whose episodes all earned the"
        " same (DAPO); what then still comes is trained as it is; 1: all are trained",
    )
    max_attempts: int = Field(default=3, ge=1, description="a group that fails this often is voided for good")
    group_timeout_s: float = Field(default=120, gt=0, description="lease of one group; after it the group goes elsewhere")
    update_timeout_s: float = Field(default=60, gt=0, description="an engine that has not acked new weights by then is fenced")
    reward_timeout_s: float = Field(default=30, gt=0, description="a group whose rewards take longer is voided")
    judge: JudgeConfig | None = Field(default=None, description="a model that judges where rules cannot; none: rules only")
    tools: dict[ToolName, ToolConfig] = Field(default_factory=dict, description="what a model may call beside search, by name")
    ping_timeout_s: float = Field(default=5, gt=0, description="a suspect engine that has not answered by then is replaced")
    max_engine_restarts: int = Field(
        default=5, ge=0, description="early deaths of one engine in a row before its place stays empty"
    )
    canary_tolerance: float = Field(default=1e-3, gt=0, description="largest log-probability difference of the canary")
    colocated: bool = Field(
        default=False, description="engines sleep while the learner works, on the same GPUs or cores; for max_staleness 0"
    )

    @model_validator(mode="after")
    def _sleeping_engines_have_fixed_places(self) -> Self:
        if self.colocated and self.autoscale is not None:
            raise ValueError(
                "autoscale: colocated engines share the learner's hardware, whose size is fixed; unset one of the two"
            )
        return self


class EpisodeBudget(BaseModel):
    """Bounds of one episode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retrieval: bool = True
    retrieval_mode: Literal["dense", "lexical", "hybrid"] | None = Field(default=None, description="null: as retrieval.mode")
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
    parallel_searches: int = Field(default=1, ge=1, description="queries of one turn, separated by ||; 1: || is ordinary text")
    answer_tokens: int = Field(
        default=0,
        ge=0,
        description="kept back for an answer that is asked for when the budget or the searches are used up; 0: never",
    )
    forbid_search: bool = Field(
        default=False, description="closed book: the tags that open a search or a call cannot be sampled"
    )
    tools: tuple[str, ...] = Field(default=(), description="names from rollout.tools that may be called where retrieval is on")

    @model_validator(mode="after")
    def _answer_fits(self) -> Self:
        if self.answer_tokens >= self.max_response_tokens:
            raise ValueError(
                f"answer_tokens ({self.answer_tokens}) must stay below max_response_tokens ({self.max_response_tokens}), or nothing"
                " is left to think with"
            )
        return self
