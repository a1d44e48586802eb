"""A run's state for a person: the fields of status.json in lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

HIDDEN = {"pid", "host", "time", "alive", "nodes", "pool_target", "engines", "version", "step_s", "eta_s", "ages"}


def status_lines(found: dict[str, Any], now: float | None = None) -> list[str]:
    """One line for each thing to know; what is not known is left out.

    Example:
        >>> known = {"state": "training", "step": 7, "engines": {"engine-0.0": "healthy"}, "pool_target": 2, "time": 100.0}
        >>> status_lines(known | {"ages": {"0": 30, "1": 10}, "step_s": 4.2, "eta_s": 500.0}, now=103.0)  # doctest: +NORMALIZE_WHITESPACE
        ['state: training', 'step: 7', 'pool: 1 healthy, of 2 wanted', 'ages: 30 groups of 0, 10 groups of 1 versions',
         'seconds per step: 4.2', 'time left: 0:08:20 at most', 'last heard: 3 s ago']
    """
    shown = [f"{key}: {_plain(value)}" for key, value in found.items() if key not in HIDDEN]
    return shown + list(_more(found, time.time() if now is None else now))


def _more(found: dict[str, Any], now: float) -> Iterator[str]:
    if found.get("alive") is False and found.get("state") in ("preparing", "training"):
        yield "alive: no, its process has ended without a word"
    if "engines" in found:
        states = Counter(found["engines"].values())
        wanted = f", of {found['pool_target']} wanted" if "pool_target" in found else ""
        yield "pool: " + (", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no engines") + wanted
    if found.get("ages"):
        yield "ages: " + ", ".join(f"{count} groups of {age}" for age, count in found["ages"].items()) + " versions"
    if "step_s" in found:
        yield f"seconds per step: {found['step_s']:.3g}"
    if found.get("state") == "training" and "eta_s" in found:
        yield f"time left: {duration(found['eta_s'])} at most"
    if "time" in found:
        yield f"last heard: {max(0, now - found['time']):.0f} s ago"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(90061)
        '25:01:01'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _plain(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
