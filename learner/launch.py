"""How Ray Train is set up: as the owner of the processes, and of nothing else.

::

    driver ─▶ TrainController ─▶ workers      nothing that computes is imported but in the workers,
                                              and no actor is started for what this project does itself
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import Result
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from learner.config import LearnerConfig
from learner.messages import WorkerSettings


def make_trainer(
    config: LearnerConfig, run_id: str, model_dir: Path, spell_canary: Callable[[], list[int]], exchange: Any, storage: Path
) -> TorchTrainer:
    """A trainer whose workers take orders from the exchange; it neither restarts them nor keeps checkpoints."""
    # Ray Train gives its workers 60 s to be placed, which a cluster that has to start nodes first does not meet.
    os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(config.start_timeout_s))
    os.environ.setdefault(ENABLE_PREEMPTION_WATCHER_ENV_VAR, "0")  # nobody here asks it: the run itself looks after its nodes
    on_gpu = config.gpus_per_worker > 0
    resources = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if on_gpu else {}) | config.worker_resources
    settings = WorkerSettings(config, run_id, str(model_dir), spell_canary, exchange)
    return _LeanTrainer(
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


def train_loop(settings: dict[str, WorkerSettings]) -> None:
    """Entry point of Ray Train: what computes is imported here, and neither in the driver nor in Ray Train's controller."""
    from learner.worker import serve_orders

    serve_orders(settings["worker"])


class _LeanTrainer(TorchTrainer):
    """Without what starts actors that nobody here uses, one after another and each with imports of seconds, before any worker.

    There are no data sets to split, and the placement group of a controller goes with the driver's job, which is the run.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        kept = [
            each for each in arguments["callbacks"] if not isinstance(each, DatasetsCallback | PlacementGroupCleanerCallback)
        ]
        policy = _PlacementIsTheRequest(scaling_config=self.scaling_config)
        return super()._initialize_and_run_controller(**arguments | {"callbacks": kept, "scaling_policy": policy})


class _PlacementIsTheRequest(FixedScalingPolicy):
    """An autoscaler reads from the workers' placement group that waits what is missing; nothing else has to tell it."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """No coordinator of requests is started."""

    def _maybe_send_resource_request(self) -> None:
        """There is nobody to send it to."""
