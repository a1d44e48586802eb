"""To Prometheus through Ray: the driver tells its figures to Ray's agent on its node, and Prometheus reads them from there.

::

    Tracker.log, every step ─┐                                   ┌─▶ agent of the driver's node ◀─ Prometheus ─▶ Grafana
                             ├─▶ series ─ refresh, every 5 s ─▶ Ray
    Tracker.now, every 5 s ──┘

Ray forgets a gauge that is not told again within two of its report intervals (10 s each), which is what lets the series of an
earlier phase, or of an engine that is gone, end by themselves. Totals are told as gauges as well: Ray's counters cannot say 0,
and `increase` does not see a first failure that comes out of nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from medr3.observe.registry import PREFIX, RUN_LABELS, Kind, Metric, lookup

# Phases × sources × components of the largest plans are a few hundred. What is beyond stays in metrics.jsonl alone.
MAX_SERIES = 1000
Labels = tuple[tuple[str, str], ...]
Figures = dict[tuple[Metric, Labels], float]


class Series:
    """Which curves stand, and where. Pure: it knows neither Ray nor a clock.

    Example:
        >>> series = Series("demo")
        >>> series.step("joint", {"reward/mean": 0.5, "reward/format": 1.0})
        >>> [(metric.series, dict(labels), value) for (metric, labels), value in series.standing().items()][1]
        ('medr3_reward_component', {'run': 'demo', 'phase': 'joint', 'component': 'format'}, 1.0)
    """

    def __init__(self, run: str) -> None:
        self._run, self._phase = run, ""
        self._step: Figures = {}
        self._now: Figures = {}
        self._lasting: Figures = {}
        self._known: dict[str, set[Labels]] = defaultdict(set)

    def step(self, phase: str, metrics: Mapping[str, float]) -> None:
        """A step's figures stand until the next step; what it says of the moment is newer than what was said before."""
        self._enter(phase)
        self._step = self._taken(metrics)
        self._now = {key: value for key, value in self._now.items() if key not in self._step}

    def now(self, phase: str, metrics: Mapping[str, float]) -> None:
        """What is true at this moment, in place of what was said before."""
        self._enter(phase)
        self._now = self._taken(metrics)

    def standing(self) -> Figures:
        return self._step | self._lasting | self._now

    def labels(self, labels: Mapping[str, str]) -> Labels:
        told = {"run": self._run, "phase": self._phase, **labels}
        return tuple((name, _ascii(value)) for name, value in told.items())

    def _enter(self, phase: str) -> None:
        """A phase that was left leaves no curve behind."""
        if phase != self._phase:
            self._phase, self._lasting, self._step, self._now = phase, {}, {}, {}

    def _taken(self, metrics: Mapping[str, float]) -> Figures:
        """Without what is no number, which Prometheus shows best as a gap."""
        figures: Figures = {}
        for name, value in metrics.items():
            found = lookup(name)
            labels = self.labels(found.labels)
            if math.isfinite(value) and self._admits(found.metric, labels):
                (self._lasting if found.metric.lasting else figures)[found.metric, labels] = value
        return figures

    def _admits(self, metric: Metric, labels: Labels) -> bool:
        known = self._known[metric.series]
        if len(known) < MAX_SERIES:
            known.add(labels)
        return labels in known


def _ascii(text: str) -> str:
    """Ray takes no other letters; a phase or a data source may have them in its name."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


class PrometheusExport:
    """One run's figures as Ray metrics. Needs a Ray that this process has joined; only the registry's labels are told."""

    def __init__(self, run: str) -> None:
        self._series = Series(run)
        self._instruments: dict[str, Any] = {}

    def log(
        self, step: int, phase: str, metrics: Mapping[str, float], observed: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self._series.step(phase, metrics)
        for name, values in (observed or {}).items():
            found = lookup(name)
            instrument, tags = self._instrument(found.metric), dict(self._series.labels(found.labels))
            for value in values:
                instrument.observe(value, tags=tags)
        self._tell()

    def now(self, phase: str, metrics: Mapping[str, float]) -> None:
        """Says also again what the last step told."""
        self._series.now(phase, metrics)
        self._tell()

    def close(self) -> None:
        """Ray's agent forgets by itself."""

    def _tell(self) -> None:
        for (metric, labels), value in self._series.standing().items():
            self._instrument(metric).set(value, tags=dict(labels))

    def _instrument(self, metric: Metric) -> Any:
        known = self._instruments.get(metric.series)
        if known is None:
            from ray.util import metrics as ray_metrics

            keys = tuple(dict.fromkeys((*RUN_LABELS, *metric.labels)))
            if metric.kind is Kind.HISTOGRAM:
                known = ray_metrics.Histogram(metric.series, metric.help, list(metric.buckets), keys)
            else:
                known = ray_metrics.Gauge(metric.exported.removeprefix(PREFIX), metric.help, keys)
            self._instruments[metric.series] = known
        return known
