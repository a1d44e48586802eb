"""What the registry wants to know of a step beside rewards and learner, and of every moment between two steps.

::

    a step's groups, acknowledgements, idle engines ─▶ around_step, observed ─▶ tracker.log
    pool, ledger, controller, disk ─▶ this_moment ─────────┘
                                           └── every 5 s ─▶ tell ─────────────▶ tracker.now ─▶ Prometheus
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from actors.failures import CAUSES
from actors.health import EngineState
from curriculum.collapse import Health
from medr3.run.journal import FinishedGroup
from medr3.run.state import RunState
from trajectories.groups import State

# Half of the interval at which Ray's processes tell their agent: no moment is missing from what Prometheus reads.
TELL_S = 5.0
DROP_REASONS = ("stale", "uniform", "surplus", "old phase", "run ended")
_HEALTH = {Health.HEALTHY: 0.0, Health.WARNING: 1.0, Health.COLLAPSED: 2.0}


def around_step(state: RunState, groups: list[FinishedGroup], seconds: float) -> dict[str, float]:
    """A step's figures beside those of rewards and learner; what was counted since the last step is taken."""
    accounts = state.journal.accounts
    accounts.step_time, accounts.step_s = time.time(), seconds
    return {
        **search_metrics(groups, seconds),
        **engine_metrics(groups, seconds),
        **accounts.weights(),
        "time/engines_idle": accounts.engines_idle.take(),
        **this_moment(state),
    }


def search_metrics(groups: list[FinishedGroup], seconds: float) -> dict[str, float]:
    """Of the searches of the step's episodes; nothing where there were none."""
    latencies = [latency for group in groups for latency in group.summary.search_ms]
    if not latencies:
        return {}
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    of_all = {
        "hit_rate": sum(group.summary.searches_cached for group in groups),
        "degraded": sum(group.summary.searches_degraded for group in groups),
        "empty": sum(group.summary.searches_empty for group in groups),
    }
    shares = {f"retrieval/{name}": count / len(latencies) for name, count in of_all.items()}
    return {"retrieval/p50_ms": p50, "retrieval/p99_ms": p99, "retrieval/searches_per_s": len(latencies) / seconds} | shares


def engine_metrics(groups: list[FinishedGroup], seconds: float) -> dict[str, float]:
    """By the engine's place in the pool: a label that stays the same when the engine in it is replaced."""
    tokens: Counter[str] = Counter()
    kv_use: dict[str, float] = {}
    preemptions: dict[str, float] = {}
    for group in groups:
        place = group.summary.engine_id.partition(".")[0]
        tokens[place] += group.summary.model_tokens
        kv_use[place] = max(kv_use.get(place, 0.0), group.summary.kv_use)
        preemptions[place] = float(group.summary.preemptions)
    return {
        **{f"rollout/tokens_per_s/{place}": count / seconds for place, count in tokens.items()},
        **{f"rollout/kv_use/{place}": share for place, share in kv_use.items()},
        **{f"rollout/preemptions/{place}": count for place, count in preemptions.items()},
    }


def observed(groups: list[FinishedGroup], ages: list[int]) -> dict[str, list[float]]:
    """Of the step's histograms."""
    latencies = [latency for group in groups for latency in group.summary.search_ms]
    return {"age/groups": [float(age) for age in ages], "retrieval/latency_ms": latencies}


def this_moment(state: RunState) -> dict[str, float]:
    """The run's accounts as they stand now. What has not happened yet is 0 and not absent: an alert compares with it."""
    counts, signals, accounts = state.ledger.counts(), state.pool.signals(), state.journal.accounts
    health = state.controller.health
    engines = Counter(state.pool.states().values())
    bands = state.sampler.bands(state.controller.phase.name)
    return {
        **_each("groups", {"admitted": counts.admitted, "trained": counts.trained}),
        **_each("groups", {"voided": counts.voided, "requeued": counts.requeued}),
        **_each("groups/open", {each.value: counts.states.get(each.value, 0) for each in State}),
        **_each("groups/dropped", {reason: counts.reasons.get(reason, 0) for reason in DROP_REASONS}),
        **_each("groups/failed", {cause: accounts.failed[cause] for cause in CAUSES}),
        **_each("pool/engines", {each.value: engines[each.value] for each in EngineState}),
        **_each("pool", {"restarts": signals.restarts, "room": signals.room}),
        **_each("pool", {"groups_running": signals.groups_running, "groups_waiting": signals.groups_waiting}),
        **_each("rollout", {"engines": signals.healthy, "kv_use": signals.kv_use}),
        **_each("weights", {"acks": accounts.acks, "refused": accounts.refused}),
        **_each("curriculum", {"phase_index": state.controller.phase_index, "steps_in_phase": state.controller.steps_in_phase}),
        **_each("curriculum", {f"questions_{band}": n for band, n in bands.items()}),
        "curriculum/health": _HEALTH[health.health] if health is not None else 0.0,
        "curriculum/rollbacks": float(len(state.progress.rollbacks)),
        "run/model_tokens": float(state.progress.model_tokens),
        "run/disk_free": disk_free(state.config.run.folder),
    }


def run_clock(state: RunState, *, training: bool) -> dict[str, float]:
    """How far the run is, and since when: for whoever must notice that it stands still."""
    last = state.checkpoints[-1].step if state.checkpoints else -1
    return {
        "run/training": float(training),
        "run/step": float(state.progress.step),
        "run/step_time": state.journal.accounts.step_time,
        "run/checkpoint_step": float(last),
        "time/step": state.journal.accounts.step_s,
    }


async def tell(state: RunState) -> None:
    """Tells Prometheus of this moment, for ever."""
    state.journal.accounts.step_time = time.time()  # the time that it takes to get here is nobody's stall
    while True:
        _now(state, training=True)
        await asyncio.sleep(TELL_S)


def tell_end(state: RunState) -> None:
    """The run ends as it was meant to. One that fails never says so, and whoever watches misses it."""
    _now(state, training=False)


def _now(state: RunState, *, training: bool) -> None:
    phase = state.controller.phase.name
    reports = state.progress.newest_report()
    state.journal.tracker.now(phase, this_moment(state) | run_clock(state, training=training) | reports)


def disk_free(folder: Path) -> float:
    """The free share of the disk that holds the folder; no number where shared storage does not answer, and no reason to die."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return math.nan
    return usage.free / usage.total


def _each(family: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{family}/{name}": float(value) for name, value in values.items()}
