"""To Weights & Biases: online where there is a key, else as files in the run folder that `wandb sync` sends later."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medr3.errors import UserError
from medr3.observe.config import TrackingConfig

ONLINE_FINISH_S = 30  # a network that is gone at the end must not keep a finished run from ending


class WandbExport:
    """One W&B run; `run_id` continues what was begun. Nothing of the machine, of its code or of its environment is sent."""

    def __init__(self, run_folder: Path, config: TrackingConfig, name: str, settings: dict[str, Any], run_id: str) -> None:
        mode = wandb_mode(config)
        if mode == "online" and not os.environ.get("WANDB_API_KEY"):
            raise UserError("tracking.wandb is online but WANDB_API_KEY is not set: export it, or set tracking.wandb=offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import: crash reports would leave the machine
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it advertises another product on the terminal
        import wandb

        self._run = wandb.init(
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
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(
        self, step: int, phase: str, metrics: Mapping[str, float], observed: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self._run.log({"step": step, "phase": phase, **metrics})

    def close(self) -> None:
        self._run.finish()


def wandb_mode(config: TrackingConfig) -> Literal["online", "offline", "disabled"]:
    """`auto` decided: online with a key, else offline."""
    if config.wandb == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return config.wandb
