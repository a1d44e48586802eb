"""One learner worker: the loop that Ray Train runs on every rank. Takes orders from the exchange until it is told to stop."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch

from learner.assembly import assemble
from learner.batch import read_batch
from learner.checkpoint import CheckpointWriter, held_state, load_training_state
from learner.messages import Answer, Checkpoint, NewPhase, Order, Start, Step, StepResult, Stop, WorkerSettings
from learner.publishing import WeightPublisher, weights_folder
from trajectories.schema import WeightVersion

# A worker asks this often for its next order: an exchange that died with its driver is noticed by then.
POLL_S = 10.0


def serve_orders(settings: WorkerSettings) -> None:
    """The life of a worker. Whatever ends it is told to the exchange first, in the words of the exception."""
    rank = ray.train.get_context().get_world_rank()
    exchange = settings.exchange
    try:
        worker = LearnerWorker(settings, rank)
        while True:
            received = ray.get(exchange.next_order.remote(rank, POLL_S))
            if received is None:
                continue
            number, order = received
            answer = worker.carry_out(order)
            ray.get(exchange.post.remote(rank, number, answer))
            if isinstance(order, Stop):
                return
            del received, order, answer  # or the groups of this step stay pinned in the object store until the next
    except Exception as error:
        ray.get(exchange.fail.remote(rank, f"{type(error).__name__}: {' '.join(str(error).split())}"))
        raise


class LearnerWorker:
    """The trainer of one rank with its files; `carry_out` is the whole protocol."""

    def __init__(self, settings: WorkerSettings, rank: int) -> None:
        config = settings.config
        torch.set_num_threads(config.cpu_threads)
        self.config, self.rank = config, rank
        self.model_dir = Path(settings.model_dir)
        self.device = ray.train.torch.get_device() if config.gpus_per_worker > 0 else torch.device("cpu")
        self.dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self.trainer = assemble(self.model_dir, config, self.device)
        folder = weights_folder(config.weights_folder, settings.run_id)
        self.publisher = WeightPublisher(folder, settings.spell_canary(), self.dtype, rank, self.device)
        self.checkpoints = CheckpointWriter(self._tell)
        self.exchange = settings.exchange
        self.version: WeightVersion | None = None

    def _tell(self, folder: str, failure: str) -> None:
        """The end of a checkpoint, from its own thread: a failure ends the run as any other does."""
        told = (
            self.exchange.fail.remote(self.rank, failure) if failure else self.exchange.checkpointed.remote(self.rank, folder)
        )
        ray.get(told)

    def carry_out(self, order: Order) -> Answer:
        """Does what the order says, together with all other ranks; only rank 0 has something to answer."""
        match order:
            case Start(version, checkpoint):
                state = ""
                if checkpoint is not None:
                    self.checkpoints.wait()  # a rollback may come while one is being written
                    load_training_state(self.trainer, Path(checkpoint))
                    state = held_state(self.trainer)
                self.version = version
                publication = self.publisher.publish(self.trainer.policy, version)
                return replace(publication, state=state) if publication is not None else None
            case Step():
                return self._step(order)
            case Checkpoint(folder):
                self.checkpoints.start(self.trainer, Path(folder))
            case NewPhase(reset_optimizer, refresh_reference):
                if reset_optimizer:
                    self.trainer.reset_optimizer()
                if refresh_reference:
                    self.trainer.refresh_reference()
            case Stop():
                self.checkpoints.wait()
        return None

    def _step(self, order: Step) -> StepResult | None:
        if self.version is None:
            raise RuntimeError("a step was ordered before the start: no version is published yet")
        began = time.perf_counter()
        batch = read_batch(ray.get(order.tables))
        read = time.perf_counter()
        metrics = self.trainer.step(batch, step=order.step, current=self.version, learning_rate=order.learning_rate)
        trained = time.perf_counter()
        publication = self.publisher.publish(self.trainer.policy, order.version)
        self.version = order.version
        metrics |= {"seconds_read": read - began, "seconds_publish": time.perf_counter() - trained, **_gpu_memory(self.device)}
        return StepResult(metrics, publication) if publication is not None else None


def _gpu_memory(device: torch.device) -> dict[str, float]:
    """The most that torch held since this was asked before, as a share of the GPU; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"gpu_memory_peak": peak / torch.cuda.get_device_properties(device).total_memory}
