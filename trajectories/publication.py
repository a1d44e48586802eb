"""What the learner announces when it has new weights, and what an engine answers. Shared by the rooms that send and receive."""

from __future__ import annotations

from dataclasses import dataclass, field

from trajectories.schema import WeightVersion


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed token sequence and the log-probability that the learner gives to each token after the first.

    Comparing them is the only check that notices every kind of undelivered weight, a stale packed output layer included.
    """

    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Publication:
    """One version of the weights: a safetensors file in shared memory, its checksum, and the canary."""

    version: WeightVersion
    path: str
    checksum: str
    nbytes: int
    canary: Canary
    state: str = ""  # hash of the whole training state, where it was just loaded from a checkpoint


@dataclass(frozen=True, slots=True)
class WeightAck:
    """One engine's answer to one publication. `ok` needs both the checksum of what arrived and an agreeing canary."""

    engine_id: str
    version: WeightVersion
    ok: bool
    checksum: str
    canary_difference: float
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
