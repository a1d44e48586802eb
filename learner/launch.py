"""How Ray Train is set up: as the owner of the processes, and of nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from learner.config import LearnerConfig
from learner.worker import WorkerSettings, train_loop


def make_trainer(
    config: LearnerConfig, run_id: str, model_dir: Path, canary_token_ids: list[int], exchange: Any, storage: Path
) -> TorchTrainer:
    """A trainer whose workers take orders from the exchange; it neither restarts them nor keeps checkpoints."""
    # Ray Train gives its workers 60 s to be placed, which a cluster that has to start nodes first does not meet.
    os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(config.start_timeout_s))
    on_gpu = config.gpus_per_worker > 0
    resources = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if on_gpu else {}) | config.worker_resources
    settings = WorkerSettings(config, run_id, str(model_dir), canary_token_ids, exchange)
    return TorchTrainer(
        train_loop,
        train_loop_config={"worker": settings},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=on_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout_s=max(1, int(config.step_timeout_s))
        ),
        run_config=RunConfig(
            name=f"learner-{run_id}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
