"""From trained weights to proved engines: publishing and updating one real vLLM engine, against one plain copy of the same bytes."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from actors.config import EngineConfig
from actors.engine import PolicyEngine
from bench.harness import REPETITIONS, Result, Spread, figure, interleaved, ratio, result
from learner.config import LearnerConfig
from learner.model import make_policy
from learner.publishing import WeightPublisher, remove_weights, weights_folder
from trajectories.publication import Publication, WeightAck
from trajectories.schema import WeightVersion

CANARY = list(range(1, 33))
# 252 million parameters in fp32, just above 1 GB: the bytes count, and no cache holds them.
LARGE = {
    "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
# What the demo trains: the calls count, and the bytes fit into a cache.
DEMO = {
    "vocab_size": 136, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
LARGE_GOAL = 3.0  # times the plain copy
DEMO_GOAL_MS = 60.0  # of which vLLM's own pause sleeps 20


def run(repetitions: int = REPETITIONS) -> Result:
    """Measures both models; needs 8 GB of memory, 3 GB of them in shared memory."""
    figures, ratios = [], []
    for name, shape in (("large", LARGE), ("demo", DEMO)):
        with delivery(shape) as course:
            delivered, copied = interleaved({"delivery": course.deliver, "copy": course.copy}, repetitions).values()
            figures += [
                figure(f"{name} size", course.nbytes / 1e6, "MB"),
                _milliseconds(f"{name}: one thread's copy", copied),
                _milliseconds(f"{name}: publish until acknowledged", delivered),
                *(_milliseconds(f"{name}: {stage}", spread) for stage, spread in course.stages(repetitions).items()),
            ]
        if name == "large":
            ratios.append(ratio("large: delivery to copy", delivered.median / copied.median, LARGE_GOAL, at_most=True))
        else:
            ratios.append(ratio("demo: delivery in ms", delivered.median * 1e3, DEMO_GOAL_MS, at_most=True))
    return result(
        figures, ratios, ["Two of the stages are forward passes over the canary: they read all weights once more each."]
    )


class Delivery:
    """A learner's policy, its publisher, and an engine that takes every version."""

    def __init__(self, model: Qwen2ForCausalLM, publisher: WeightPublisher, update: Callable[[Publication], WeightAck]) -> None:
        self._policy = make_policy(model, LearnerConfig())
        self._publisher, self._update = publisher, update
        self._sources = [parameter.detach().numpy() for parameter in model.parameters()]
        self._copies = [source.copy() for source in self._sources]
        self._seconds: list[dict[str, float]] = []
        self.nbytes = sum(source.nbytes for source in self._sources)

    def deliver(self) -> float:
        """Seconds from trained weights to an engine that proved them."""
        began = time.perf_counter()
        publication = self._publisher.publish(self._policy, WeightVersion(1, len(self._seconds)))
        assert publication is not None
        ack = self._update(publication)
        assert ack.ok, ack.reason
        seconds = time.perf_counter() - began
        published = {f"publish, {stage}": seconds for stage, seconds in self._publisher.seconds.items()}
        self._seconds.append(published | {f"update, {stage}": seconds for stage, seconds in ack.seconds.items()})
        return seconds

    def copy(self) -> float:
        """Seconds of a plain copy by one thread into memory that was touched before."""
        began = time.perf_counter()
        for target, source in zip(self._copies, self._sources, strict=True):
            np.copyto(target, source)
        return time.perf_counter() - began

    def stages(self, repetitions: int) -> dict[str, Spread]:
        """Where the seconds of the latest deliveries went."""
        latest = self._seconds[-repetitions:]
        by_stage = {stage: [seconds[stage] for seconds in latest] for stage in latest[0]}
        return {stage: Spread(statistics.median(all_), min(all_), max(all_)) for stage, all_ in by_stage.items()}


@contextmanager
def delivery(shape: dict[str, int]) -> Iterator[Delivery]:
    """A random model of this shape with a publisher and a running engine; nothing of it is left behind."""
    model = Qwen2ForCausalLM(
        Qwen2Config(**shape, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0)
    )
    environment = dict(os.environ)
    weights = weights_folder("/dev/shm", f"bench-{uuid.uuid4().hex[:8]}")
    config = EngineConfig(cpu_threads=torch.get_num_threads(), kv_cache_mib=64, max_model_len=256)
    # Wide: what is measured here is time, and a larger random model is less exact than a trained one.
    engine = PolicyEngine("bench", config, canary_tolerance=1e-2)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        try:
            model.save_pretrained(folder)
            runner.run(engine.start(folder, needs_text=False))
            publisher = WeightPublisher(weights, CANARY, torch.float32, rank=0, device=torch.device("cpu"))
            yield Delivery(model, publisher, lambda publication: runner.run(engine.update(publication)))
        finally:
            engine.stop()
            remove_weights(weights)
            os.environ.clear()
            os.environ.update(environment)


def _milliseconds(name: str, seconds: Spread) -> Result:
    return {
        **figure(name, seconds.median * 1e3, "ms"),
        "lowest": seconds.lowest * 1e3,
        "highest": seconds.highest * 1e3,
    }
