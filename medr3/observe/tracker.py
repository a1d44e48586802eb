"""The one place where metrics go: metrics.jsonl always, W&B by setting, one progress line per step."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr3.errors import UserError
from medr3.observe.config import TrackingConfig
from medr3.observe.metrics_file import MetricsFile
from medr3.observe.registry import lookup

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

# What a person watches while a run goes on; a part whose metric the step did not log is left out.
PROGRESS_PARTS = (
    ("reward/mean", "reward {:.3f}"),
    ("heldout/accuracy", "held-out {:.3f}"),
    ("rollout/tokens_per_s", "{:,.0f} tokens/s"),
    ("learner/mismatch_mean", "mismatch {:.1e}"),
    ("learner/age_max", "age {:.0f}"),
)
ONLINE_FINISH_S = 30  # a network that is gone at the end must not keep a finished run from ending


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
        run_folder.mkdir(parents=True, exist_ok=True)
        self._file = MetricsFile(run_folder / "metrics.jsonl", resume_step)
        self._wandb = _start_wandb(run_folder, config, name or run_folder.name, settings or {}, self.id)

    def log(self, step: int, phase: str, metrics: dict[str, float]) -> None:
        """One step's metrics, as one line. Steps only go forward; names must be registered."""
        for metric in metrics:
            lookup(metric)
        self._file.append(step, phase, metrics)
        if self._wandb is not None:
            self._wandb.log({"step": step, "phase": phase, **metrics})
        if self._progress:
            print(progress_line(step, phase, metrics), flush=True)

    def close(self, exit_code: int = 0) -> None:
        """Ends the file and the W&B run; safe to call twice."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
            self._wandb = None


def progress_line(step: int, phase: str, metrics: dict[str, float]) -> str:
    """The line that a person reads while the run goes on."""
    parts = [template.format(metrics[name]) for name, template in PROGRESS_PARTS if name in metrics]
    return "  ".join([f"step {step}", f"{phase:<10}", *parts]).rstrip()


def _start_wandb(run_folder: Path, config: TrackingConfig, name: str, settings: dict[str, Any], run_id: str) -> Run | None:
    mode = config.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if mode == "disabled":
        return None
    if mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise UserError("tracking.wandb is online but WANDB_API_KEY is not set: export it, or set tracking.wandb=offline")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import: crash reports would leave the machine
    import wandb

    run = wandb.init(
        project=config.project,
        name=name,
        id=run_id,
        resume="allow" if mode == "online" else None,
        dir=run_folder,
        mode=mode,
        config=settings,
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            finish_timeout=ONLINE_FINISH_S,
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
