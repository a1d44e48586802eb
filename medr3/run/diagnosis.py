"""Why no batch comes: the part of the way from a question to the learner at which the groups stand still."""

from __future__ import annotations

from collections.abc import Mapping

from medr3.run.state import RunState


async def explain_wait(state: RunState, stage: str) -> str:
    """The stalled stage in words; a stage of the main loop explains itself, and only the wait for a batch has many reasons."""
    if stage != "rollout":
        return stage
    slow = state.ledger.waits_for(state.version)
    return where_groups_stand(state.ledger.states(), await state.pool.activity(), state.pool.states(), slow)


def where_groups_stand(
    groups: Mapping[str, int], activity: Mapping[str, int], engines: Mapping[str, str], waits_for: list[str]
) -> str:
    """Names the stage: feeding, engines, generation, retrieval, reward or buffer.

    Example:
        >>> where_groups_stand({"inflight": 4}, {"generating": 0, "searching": 3, "scoring": 0}, {"engine-0.0": "healthy"}, [])
        'retrieval (groups: 4 inflight; episodes: 3 searching; engines: 1 healthy)'
        >>> where_groups_stand({}, {}, {"engine-0.0": "healthy"}, [])
        'feeding (no group is open; engines: 1 healthy)'
    """
    busy = {name: n for name, n in activity.items() if n}
    if not groups:
        stage, detail = "feeding", ["no group is open"]
    else:
        detail = ["groups: " + _list(groups)]
        if busy:
            detail.append("episodes: " + _list(busy))
        stage = _stage(groups, busy, waits_for)
    states = list(engines.values())
    detail.append("engines: " + (_list({state: states.count(state) for state in sorted(set(states))}) or "none"))
    return f"{stage} ({'; '.join(detail)})"


def _stage(groups: Mapping[str, int], busy: Mapping[str, int], waits_for: list[str]) -> str:
    names = {"generating": "generation", "searching": "retrieval", "scoring": "reward", "silent": "engines"}
    if groups.get("inflight"):
        stage = names.get(max(busy, key=lambda name: busy[name]), "generation") if busy else "generation"
        return f"{stage}, and the learner waits for {len(waits_for)} slow groups" if waits_for else stage
    return "engines" if groups.get("waiting") else "buffer"


def _list(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counted.items())
