"""Is training falling apart? A pure detector that watches several metrics of the learner step together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Any

from curriculum.rules_config import CollapseConfig, Signal

# Fewer steps say too little about how much a metric moves by itself.
LEAST_REFERENCE = 6
# The median of |x| is 1/1.4826 of the deviation of normal x; a difference of two steps deviates √2 times as much as one step.
DEVIATION_PER_DIFFERENCE = 1.4826 / math.sqrt(2)


class Health(StrEnum):
    """What the signals say together."""

    HEALTHY = "healthy"
    WARNING = "warning"
    COLLAPSED = "collapsed"


@dataclass(frozen=True, slots=True)
class Reading:
    """One signal at one step. `problem` is empty where it is well."""

    metric: str
    problem: str
    value: float | None = None  # the median of the last steps
    reference: float | None = None
    deviations: float | None = None  # in the bad direction


@dataclass(frozen=True, slots=True)
class CollapseVerdict:
    """`since` is the first step of the trouble: weights from before it are the ones to go back to."""

    health: Health
    words: str
    since: int | None
    readings: dict[str, Reading]

    @property
    def evidence(self) -> dict[str, Any]:
        """JSON for events and the manifest."""
        return {
            "health": self.health.value,
            "since": self.since,
            "signals": {name: asdict(reading) for name, reading in self.readings.items()},
        }


@dataclass(slots=True)
class _Watched:
    """The recent past of one signal. The reference does not move while the signal is off, or it would get used to the trouble."""

    reference: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    off: bool = False


class CollapseDetector:
    """Compares the last steps of a phase with those before them, signal by signal, and counts how many went wrong at once.

    ::

        change    = median of the last `recent_steps` − median of the `reference_steps` before them, in the bad direction
        deviation = 1.4826 · median |difference of neighbouring reference steps| / √2        (a trend does not widen it)
        off       : change ≥ min_change and change ≥ warn_at · deviation;  well again below half of it, or below clear_at
        warning   : a signal is off, is no finite number, or is missing
        collapsed : `signals_to_collapse` signals are off, or no finite numbers, for `patience` steps in a row

    Example:
        >>> config = CollapseConfig(signals={"reward": Signal(metric="r", min_change=0.3, relative=True)}, signals_to_collapse=1)
        >>> detector = CollapseDetector(config)
        >>> for step in range(16):
        ...     verdict = detector.observe(step, {"r": (0.5 if step < 10 else 0.1) + 0.01 * (step % 2)})
        >>> verdict.health.value, verdict.since
        ('collapsed', 11)
        >>> detector.observe(16, {}).words
        'warning: reward: r is missing'
    """

    def __init__(self, config: CollapseConfig) -> None:
        self.config = config
        self._watched = {name: _Watched() for name in config.signals}
        self._since: int | None = None
        self._bad_steps = 0

    def observe(self, step: int, metrics: Mapping[str, float]) -> CollapseVerdict:
        """Takes the metrics of one learner step."""
        readings = {name: self._read(name, signal, metrics) for name, signal in self.config.signals.items()}
        bad = [name for name, reading in readings.items() if reading.problem]
        missing = [name for name in bad if self.config.signals[name].metric not in metrics]
        self._since = None if not bad else step if self._since is None else self._since
        self._bad_steps = self._bad_steps + 1 if len(bad) - len(missing) >= self.config.signals_to_collapse else 0
        health = Health.WARNING if bad else Health.HEALTHY
        if self._bad_steps >= self.config.patience:
            health = Health.COLLAPSED
        words = f"{health.value}: " + ("; ".join(f"{name}: {readings[name].problem}" for name in bad) or "nothing is off")
        return CollapseVerdict(health, words, self._since, readings)

    def snapshot(self) -> dict[str, Any]:
        """JSON for the manifest."""
        signals = {name: asdict(watched) for name, watched in self._watched.items()}
        return {"signals": signals, "since": self._since, "bad_steps": self._bad_steps}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot; a signal that the configuration does not name any more is left out."""
        self._since, self._bad_steps = snapshot["since"], snapshot["bad_steps"]
        for name in self._watched.keys() & snapshot["signals"].keys():
            self._watched[name] = _Watched(**snapshot["signals"][name])

    def _read(self, name: str, signal: Signal, metrics: Mapping[str, float]) -> Reading:
        watched = self._watched[name]
        if signal.metric not in metrics:
            return Reading(signal.metric, f"{signal.metric} is missing")
        value = metrics[signal.metric]
        if not math.isfinite(value):
            return Reading(signal.metric, f"{signal.metric} is {value}")
        self._push(watched, value)
        if len(watched.reference) < min(LEAST_REFERENCE, self.config.reference_steps):
            return Reading(signal.metric, "", value)
        now, before = median(watched.recent), median(watched.reference)
        change = {"down": before - now, "up": now - before, "both": abs(now - before)}[signal.bad]
        matters = signal.min_change * (abs(before) if signal.relative else 1.0)
        deviation = DEVIATION_PER_DIFFERENCE * median(abs(late - early) for early, late in pairwise(watched.reference))
        deviations = min(change / deviation, 1e6) if deviation > 0 else math.copysign(1e6, change) if change else 0.0
        if watched.off:
            watched.off = change >= matters / 2 and deviations >= self.config.clear_at
        else:
            watched.off = change >= matters and change > 0 and deviations >= self.config.warn_at
        problem = f"{signal.metric} {now:.3g}, {before:.3g} before ({deviations:.1f} deviations)" if watched.off else ""
        return Reading(signal.metric, problem, now, before, deviations)

    def _push(self, watched: _Watched, value: float) -> None:
        watched.recent.append(value)
        if len(watched.recent) > self.config.recent_steps:
            leaving = watched.recent.pop(0)
            if not watched.off:
                watched.reference = [*watched.reference, leaving][-self.config.reference_steps :]
