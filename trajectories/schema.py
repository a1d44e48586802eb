"""What is remembered of an episode: one Arrow row. The same bytes travel, are stored, and are replayed into the learner.

Positions are absolute indices into `token_ids`. `loss_mask[i]` and `logprobs[i]` speak of token i itself (the log-probability
of token i given all tokens before it), so nothing is shifted before the learner shifts it, once, in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa

SCHEMA_VERSION = 2


class WeightVersion(NamedTuple):
    """(generation, publish number): the generation grows with every restart of the learner, so no version is ever reused.

    Example:
        >>> WeightVersion.parse("2.37") > WeightVersion(1, 99)
        True
    """

    generation: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        generation, number = text.split(".")
        return cls(int(generation), int(number))


class Source(StrEnum):
    """Where a token came from. Only MODEL tokens are ever trained."""

    PROMPT = "prompt"
    MODEL = "model"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) from one source; `turn` counts the model's turns from 0 (a prompt has turn -1).

    What the protocol writes between two turns, to close the thinking, is PROMPT too, with the turn that it ends.
    """

    source: str
    start: int
    end: int
    turn: int


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, end) were sampled under one weight version."""

    generation: int
    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Search:
    """One call of the retrieval service, or of another tool, and what came back. Several may share a turn.

    A document of the corpus has an id, a score and a level; what a tool says in its own words is among `documents` alone.
    """

    turn: int
    query: str
    document_ids: list[str]
    documents: list[str]
    scores: list[float]
    evidence_levels: list[int]  # 0 where unknown
    index_hash: str
    latency_ms: float
    degraded: bool = False
    cached: bool = False
    tool: str = "search"


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One named component with the weight that it entered the total with."""

    name: str
    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class TurnReward:
    """A process reward, credited to the turn that earned it. It is a part of the row's `reward`, never added to it again."""

    turn: int
    name: str
    value: float


@dataclass(slots=True)
class Episode:
    """One finished episode; its fields are the columns of `EPISODE_SCHEMA`, in order."""

    run_id: str
    group_id: str
    episode_id: str
    question_id: str
    attempt: int
    phase: str
    source: str
    kind: str
    token_ids: list[int]
    loss_mask: list[bool]
    logprobs: list[float]  # 0.0 where the model did not sample the token
    segments: list[Segment]
    versions: list[VersionSpan]
    searches: list[Search]
    rewards: list[RewardPart] = field(default_factory=list)
    turn_rewards: list[TurnReward] = field(default_factory=list)
    reward: float = 0.0
    answer: str = ""
    correct: bool = False
    finish: str = ""  # why the protocol ended the episode: answer | forced | malformed | budget | …
    text: str = ""  # the whole response as a person reads it, documents included
    temperature: float = 1.0
    started_at: float = 0.0  # Unix seconds
    generate_s: float = 0.0
    search_s: float = 0.0


def _spans(*fields: tuple[str, pa.DataType]) -> pa.ListType:
    return pa.list_(pa.struct(fields))


_TYPES: dict[str, pa.DataType] = {
    "run_id": pa.string(), "group_id": pa.string(), "episode_id": pa.string(), "question_id": pa.string(),
    "attempt": pa.int32(), "phase": pa.string(), "source": pa.string(), "kind": pa.string(),
    "token_ids": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.bool_()), "logprobs": pa.list_(pa.float32()),
    "segments": _spans(("source", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("turn", pa.int32())),
    "versions": _spans(("generation", pa.int32()), ("number", pa.int32()), ("start", pa.int32()), ("end", pa.int32())),
    "searches": _spans(
        ("turn", pa.int32()), ("query", pa.string()), ("document_ids", pa.list_(pa.string())),
        ("documents", pa.list_(pa.string())), ("scores", pa.list_(pa.float32())), ("evidence_levels", pa.list_(pa.int8())),
        ("index_hash", pa.string()), ("latency_ms", pa.float32()), ("degraded", pa.bool_()), ("cached", pa.bool_()),
        ("tool", pa.string()),
    ),
    "rewards": _spans(("name", pa.string()), ("value", pa.float32()), ("weight", pa.float32())),
    "turn_rewards": _spans(("turn", pa.int32()), ("name", pa.string()), ("value", pa.float32())),
    "reward": pa.float32(), "answer": pa.string(), "correct": pa.bool_(), "finish": pa.string(), "text": pa.string(),
    "temperature": pa.float32(), "started_at": pa.float64(), "generate_s": pa.float32(), "search_s": pa.float32(),
}  # fmt: skip

EPISODE_SCHEMA = pa.schema(list(_TYPES.items()), metadata={"medr3.schema": str(SCHEMA_VERSION)})

# What the store appends when a group ends: the audit reads these together with the run's events.
ENDING_FIELDS = (
    pa.field("outcome", pa.string()),  # trained | dropped
    pa.field("reason", pa.string()),
    pa.field("trained_step", pa.int32()),
    pa.field("learner_generation", pa.int32()),
    pa.field("learner_number", pa.int32()),
)
STORED_SCHEMA = pa.schema([*EPISODE_SCHEMA, *ENDING_FIELDS], metadata=EPISODE_SCHEMA.metadata)

_PART_FIELDS = {part: [each.name for each in fields(part)] for part in (Segment, VersionSpan, Search, RewardPart, TurnReward)}


def to_table(episodes: list[Episode]) -> pa.Table:
    """Episodes as an Arrow table of `EPISODE_SCHEMA`; a wrong type or a missing column raises here, at the writer.

    Column by column: `dataclasses.asdict` copies every token by itself, which took five times as long.
    """
    columns = [
        pa.array([_plain(getattr(episode, column.name)) for episode in episodes], column.type) for column in EPISODE_SCHEMA
    ]
    return pa.table(columns, schema=EPISODE_SCHEMA)


def _plain(value: Any) -> Any:
    """A list of parts as a list of dictionaries, which Arrow takes as structs; everything else as it is."""
    if not isinstance(value, list) or not value or type(value[0]) not in _PART_FIELDS:
        return value
    names = _PART_FIELDS[type(value[0])]
    return [{name: getattr(part, name) for name in names} for part in value]


def check(row: dict[str, Any]) -> list[str]:
    """What is wrong with one row, in words; an empty list where nothing is. Cheap enough to run on every row.

    The rules: segments tile the tokens in order; exactly the model's tokens carry the loss mask; versions tile the model's
    tokens; only the model's tokens have log-probabilities.
    """
    n = len(row["token_ids"])
    wrong: list[str] = []
    if len(row["loss_mask"]) != n or len(row["logprobs"]) != n:
        return [f"{n} tokens but {len(row['loss_mask'])} mask entries and {len(row['logprobs'])} log-probabilities"]
    position = 0
    from_model = [False] * n
    for segment in row["segments"]:
        if segment["start"] != position or segment["end"] < segment["start"] or segment["end"] > n:
            wrong.append(f"segment [{segment['start']}, {segment['end']}) does not continue at {position}")
            break
        if segment["source"] == Source.MODEL:
            from_model[segment["start"] : segment["end"]] = [True] * (segment["end"] - segment["start"])
        position = segment["end"]
    if position != n and not wrong:
        wrong.append(f"segments end at {position} of {n} tokens")
    for i, (masked_in, sampled) in enumerate(zip(row["loss_mask"], from_model, strict=True)):
        if masked_in and not sampled:
            wrong.append(f"token {i} carries loss but did not come from the model")
            break
    if any(value != 0.0 and not sampled for value, sampled in zip(row["logprobs"], from_model, strict=True)):
        wrong.append("a token that the model did not sample has a log-probability")
    covered = [False] * n
    for span in row["versions"]:
        covered[span["start"] : span["end"]] = [True] * (span["end"] - span["start"])
    if covered != from_model:
        wrong.append("weight versions do not cover exactly the model's tokens")
    return wrong
