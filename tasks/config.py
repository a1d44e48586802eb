"""Settings of the medical world and of the cold start."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WorldConfig(BaseModel):
    """The procedural medical world. Several training worlds share names but not facts, so facts cannot be memorised."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    training_worlds: int = Field(default=16, ge=1)
    entities_per_type: int = Field(default=60, ge=8)
    held_out_share: float = Field(default=0.125, gt=0, lt=0.5, description="share of the names that training never sees")
    documents_per_fact: tuple[float, float, float] = Field(default=(0.15, 0.45, 0.40), description="chance of 1, 2, 3")
    weaker_agrees: float = Field(default=0.15, ge=0, le=1, description="chance that a weaker document tells the truth")


class DatasetConfig(BaseModel):
    """A data set that phases mix under its name; each of its two parts is a [FORMAT:]PATH[@SPLIT] of `medr3 data check`."""

    model_config = ConfigDict(extra="forbid")

    train: str = Field(min_length=1)
    held_out: str = Field(min_length=1, description="one half decides plateaus, the other is reported")
    with_context: bool = Field(default=False, description="abstracts, notes and paragraphs stand in the prompt")
    allow_bad: int = Field(default=0, ge=0, description="malformed rows that are left out; more are refused")


class ColdStartConfig(BaseModel):
    """Supervised start of a tiny model on verified teacher episodes, behind skill gates."""

    model_config = ConfigDict(extra="forbid")

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    ffn_size: int = 384
    batch_size: int = Field(default=32, ge=1)
    # A tiny model gains little from a second thread, and on a shared machine two threads wait for each other.
    cpu_threads: int = Field(default=1, ge=1)
    demonstrations: int = Field(default=20_000, ge=100)
    drill_share: float = Field(default=0.3, ge=0, le=1)
    muon_learning_rate: float = Field(default=0.01, gt=0)
    adamw_learning_rate: float = Field(default=0.02, gt=0)
    warmup_steps: int = 50
    drill_gate: float = Field(default=0.95, ge=0, le=1, description="weakest skill on held-out drills")
    drills_kept_gate: float = Field(default=0.93, ge=0, le=1, description="weakest drill skill at the end of imitation")
    imitation_gate: float = Field(
        default=0.95, ge=0, le=1, description="weakest skill on held-out demonstrations, twice in a row"
    )
    imitation_steps: int = Field(default=400, ge=1, description="imitation takes at least so many steps")
    max_steps: int = Field(default=2_500, ge=100, description="a start that is not through its gates by then is restarted")
    attempts: int = Field(default=3, ge=1, description="restarts with another data order before the run gives up")
    # From here on: a model of one's own, model.path, imitates episodes from files. The figures are R3-RAG's.
    episodes: tuple[str, ...] = Field(
        default=(), description="Parquet files of medr3 data coldstart, or folders of them, that model.path imitates first"
    )
    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    warm_up_share: float = Field(default=0.1, ge=0, lt=1, description="of the steps; then the rate falls by a half cosine")
