"""The one place where metrics go: metrics.jsonl always, Prometheus, W&B and TensorBoard by setting, one progress line per step."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medr3.observe.config import TrackingConfig
from medr3.observe.metrics_file import MetricsFile
from medr3.observe.prometheus import PrometheusExport
from medr3.observe.registry import lookup
from medr3.observe.tensorboard import TensorBoardExport
from medr3.observe.wandb_run import WandbExport, wandb_mode
from security.hiding import scrubbed

# What a person watches while a run goes on; a part whose metric the step did not log is left out.
PROGRESS_PARTS = (
    ("reward/mean", "reward {:.3f}"),
    ("heldout/accuracy", "held-out {:.3f}"),
    ("rollout/tokens_per_s", "{:,.0f} tokens/s"),
    ("learner/mismatch_mean", "mismatch {:.1e}"),
    ("learner/age_max", "age {:.0f}"),
)


class Export(Protocol):
    """Somewhere that steps are told to, beside metrics.jsonl."""

    def log(
        self, step: int, phase: str, metrics: Mapping[str, float], observed: Mapping[str, Sequence[float]] | None = None
    ) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Metrics of one run. `resume_step` is the manifest's step, `tracker_id` its W&B run: both continue what was begun.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> tracker = Tracker(folder, TrackingConfig(wandb="disabled"))
        >>> tracker.log(1, "reasoning", {"reward/mean": 0.25, "learner/age_max": 0.0})
        step 1  reasoning   reward 0.250  age 0
        >>> tracker.close()
    """

    def __init__(
        self,
        run_folder: Path,
        config: TrackingConfig,
        *,
        name: str = "",
        settings: dict[str, Any] | None = None,
        tracker_id: str = "",
        resume_step: int | None = None,
    ) -> None:
        self.id = tracker_id or uuid.uuid4().hex[:8]
        self._progress = config.progress
        self._name = name or run_folder.name
        run_folder.mkdir(parents=True, exist_ok=True)
        self._file = MetricsFile(run_folder / "metrics.jsonl", resume_step)
        self._exports: list[Export] = []
        self._wants_prometheus = config.prometheus
        self._prometheus: PrometheusExport | None = None
        if wandb_mode(config) != "disabled":
            self._exports.append(WandbExport(run_folder, config, self._name, scrubbed(settings or {}), self.id))
        if config.tensorboard:
            self._exports.append(TensorBoardExport(run_folder, resume_step))

    def join_ray(self) -> None:
        """From now on Prometheus is told as well, unless the settings forbid it; called once this process has joined a Ray."""
        if self._wants_prometheus:
            self._prometheus = PrometheusExport(self._name)
            self._exports.append(self._prometheus)

    def log(
        self, step: int, phase: str, metrics: dict[str, float], observed: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """One step's metrics, as one line, and what was observed for its histograms. Steps only go forward; names must be registered."""
        for metric in (*metrics, *(observed or {})):
            lookup(metric)
        self._file.append(step, phase, metrics)
        for export in list(self._exports):
            try:
                export.log(step, phase, metrics, observed)
            except Exception as error:  # a run of weeks does not end because its spectators are gone
                self._give_up(export, error)
        if self._progress:
            print(progress_line(step, phase, metrics), flush=True)

    def now(self, phase: str, metrics: dict[str, float]) -> None:
        """What is true at this moment, between two steps: for Prometheus alone."""
        for metric in metrics:
            lookup(metric)
        if self._prometheus is not None and self._prometheus in self._exports:
            try:
                self._prometheus.now(phase, metrics)
            except Exception as error:
                self._give_up(self._prometheus, error)

    def close(self) -> None:
        """Ends the file and all exports; safe to call twice."""
        self._file.close()
        while self._exports:
            export = self._exports.pop()
            try:
                export.close()
            except Exception as error:
                self._warn(export, error)

    def _give_up(self, export: Export, error: Exception) -> None:
        self._exports.remove(export)
        self._warn(export, error)

    def _warn(self, export: Export, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"medr3: warning: {type(export).__name__} is given up, metrics.jsonl goes on: {reason}", file=sys.stderr)


def progress_line(step: int, phase: str, metrics: Mapping[str, float]) -> str:
    """The line that a person reads while the run goes on."""
    parts = [template.format(metrics[name]) for name, template in PROGRESS_PARTS if name in metrics]
    return "  ".join([f"step {step}", f"{phase:<10}", *parts]).rstrip()
