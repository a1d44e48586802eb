"""How an engine and a pool fail, as types. The first three void a group; the last ends the run."""

from __future__ import annotations

from actors.messages import GroupVoided

# Why an attempt at a group failed, in the words of metrics; there are no others.
CAUSES = (
    "retrieval_rejected", "retrieval_timeout", "retrieval_error", "tool", "reward", "lease", "rows_lost",
    "engine_fenced", "engine_lost", "engine_drained", "other",
)  # fmt: skip


class EngineFenced(GroupVoided):
    """The engine has no verified weights, so nothing that it samples may be used."""

    cause = "engine_fenced"


class EngineLost(GroupVoided):
    """The engine's process is gone or does not answer."""

    cause = "engine_lost"


class EngineDrained(GroupVoided):
    """The engine was taken out of service before the group was done: nobody's fault, so it need not cost the group an attempt."""

    cause = "engine_drained"


class PoolDied(Exception):
    """No engine is left that could be trusted with work, and none can be started."""
