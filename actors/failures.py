"""How an engine and a pool fail, as types. The first three void a group; the last ends the run."""

from __future__ import annotations

from actors.messages import GroupVoided


class EngineFenced(GroupVoided):
    """The engine has no verified weights, so nothing that it samples may be used."""


class EngineLost(GroupVoided):
    """The engine's process is gone or does not answer."""


class EngineDrained(GroupVoided):
    """The engine was taken out of service before the group was done: nobody's fault, so it need not cost the group an attempt."""


class PoolDied(Exception):
    """No engine is left that could be trusted with work, and none can be started."""
