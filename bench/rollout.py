"""What the system around an engine costs: whole episodes beside the same requests sent to the bare engine, in turns in one process.

```
 episodes   RolloutActor ─ protocol ─ PolicyEngine ─ vLLM      and retrieval client, rewards, Arrow
 bare                                              ─ vLLM      the same prompts, lengths and seeds, as many groups at a time
```
The bare side has no searches to wait for: what episodes wait counts against them, unless others keep the engine busy meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config

from actors.config import EngineConfig, RolloutConfig
from bench.harness import Result, figure, interleaved, rate, ratio, result
from bench.processor_time import processor_time
from bench.taught import SleepingService, TaughtActor, at_once, build_index, prepare_lessons, replay
from bench.workload import DEMO, VERSION, random_model, shape
from learner.config import LearnerConfig
from learner.model import make_policy
from learner.publishing import WeightPublisher, remove_weights, weights_folder
from retrieval_service.config import RetrievalConfig
from tasks.config import WorldConfig
from tasks.vocabulary import build_tokenizer
from tasks.world import Universe

GROUP_SIZE = 8
SEARCH_S = 0.005  # about what a search through Serve takes where the cores are free
SLOW_S, SLOW_OVER_FAST = 1.0, 0.85
# A flow of 1024 episodes, the most that the pool gives to one engine: three slow searches each take 3 s, in which the others keep
# the engine busy. First until it is even, then measured.
FLOW_GROUPS, FILL_S, FLOW_S = 128, 6.0, 6.0
FLOW_QUESTIONS = 256  # groups are not repeated while the cache still has them
CANARY = list(range(1, 33))
Part = tuple[list[Result], list[Result]]  # figures, ratios


@dataclass(frozen=True)
class Case:
    """One model and how much it is given to do."""

    name: str
    model: Qwen2Config
    engine: EngineConfig
    groups: int
    at_once: int  # groups
    repetitions: int
    goal: float


SMALL = Case("the demo's model", DEMO, EngineConfig(cpu_threads=1), groups=64, at_once=32, repetitions=5, goal=0.75)
LARGE = Case(  # few episodes, for on two cores each takes a third of a second
    "a 109M model", shape(hidden=768, layers=12, heads=12, kv_heads=4, ffn=2560, vocabulary=25_000),
    EngineConfig(cpu_threads=2, kv_cache_mib=1024), groups=4, at_once=4, repetitions=4, goal=0.9,
)  # fmt: skip


def run(short: bool = False) -> Result:
    """Ray comes last: even one that does nothing takes processor time. `short` is episodes over the bare engine on the small model."""
    torch.set_num_threads(1)
    parts: list[Part] = []
    if not short:
        with rolling_out(LARGE) as rollout:
            parts.append(rollout.over_bare())
    with rolling_out(SMALL) as rollout:
        parts.append(rollout.over_bare())
        if not short:
            parts += [rollout.slow_searches(), rollout.through_serve()]
    figures, ratios = (list(chain.from_iterable(column)) for column in zip(*parts, strict=True))
    note = "weights are random: every turn samples as many tokens as the teacher wrote, whose words then take their place"
    return result(figures, ratios, [note])


class Rollout:
    """A real engine that proved its weights, in a rollout actor that runs in this process."""

    def __init__(self, case: Case, runner: asyncio.Runner, folder: Path) -> None:
        self._case, self._runner = case, runner
        self._config = RetrievalConfig(deadline_s=30)
        self._index_folder, self._model_dir = folder / "index", str(folder / "model")
        universe = Universe.build(WorldConfig())
        index = build_index(universe, self._index_folder, self._config)
        self._lessons = prepare_lessons(universe, index, self._config, FLOW_QUESTIONS, GROUP_SIZE)
        self._batch = self._lessons.requests[: case.groups]
        self._tokens = self._lessons.tokens(self._batch)
        self._clock: dict[str, list[float]] = defaultdict(list)  # seconds by variant, round by round
        self._processor: dict[str, list[float]] = defaultdict(list)  # likewise, of all processes together
        self._attempts = count()
        self.actor = TaughtActor()

    def start(self) -> None:
        model = random_model(self._case.model)
        model.save_pretrained(self._model_dir)
        build_tokenizer().save_pretrained(self._model_dir)
        # Wide: what is measured here is time, and a larger random model is less exact than a trained one.
        settings = RolloutConfig(canary_tolerance=1e-2)
        self._await(self.actor.start(self._model_dir, self._case.engine, "bench", None, self._config, settings))
        weights = weights_folder("/dev/shm", f"bench-{uuid.uuid4().hex[:8]}")
        try:
            publisher = WeightPublisher(weights, CANARY, torch.float32, rank=0, device=torch.device("cpu"))
            publication = publisher.publish(make_policy(model, LearnerConfig()), VERSION)
            assert publication is not None
            ack = self._await(self.actor.update(publication))
            assert ack.ok, ack.reason
        finally:
            remove_weights(weights)

    def over_bare(self) -> Part:
        """Batches of groups, as a synchronous step has them."""
        name, amount = self._case.name, self._tokens
        policy = self._teach(SleepingService(self._lessons.found, SEARCH_S))
        self._await(self._episodes())
        sent = list(policy.sent)
        seconds = interleaved(
            {
                "episodes": lambda: self._timed("episodes", self._episodes()),
                "bare": lambda: self._timed("bare", replay(self.actor.llm, sent, self._case.at_once)),
            },
            self._case.repetitions,
            warm_up=1,
        )
        figures = [rate(f"{name}: {variant}", amount, took, "tokens/s") for variant, took in seconds.items()]
        figures += [
            figure(f"{name}: {variant}, processor time of 1000 tokens", each / amount * 1e3, "s")
            for variant, each in ((variant, statistics.median(self._processor[variant][1:])) for variant in seconds)
        ]
        # Round by round, because what disturbs the machine for seconds disturbs both sides of one round, but not of all.
        gains = [bare / ours for bare, ours in zip(self._clock["bare"][1:], self._clock["episodes"][1:], strict=True)]
        return figures, [ratio(f"{name}: episodes over bare", statistics.median(gains), self._case.goal)]

    def slow_searches(self) -> Part:
        """A steady flow, as an asynchronous run has it; the same number of groups at a time on both sides."""
        variants = {"at once": 0.0, f"after {SLOW_S:g} s": SLOW_S}
        seconds = interleaved(
            {name: lambda delay_s=delay_s: self._flow(delay_s) for name, delay_s in variants.items()},  # type: ignore[misc]
            repetitions=3,
            warm_up=0,
        )
        name, (fast, slow) = self._case.name, seconds.values()
        figures = [rate(f"{name}: flow, searches answered {when}", 1.0, took, "tokens/s") for when, took in seconds.items()]
        return figures, [ratio(f"{name}: slow searches over immediate ones", fast.median / slow.median, SLOW_OVER_FAST)]

    def through_serve(self) -> Part:
        """The same batches with the real retrieval service on the same cores; it may remember nothing from batch to batch."""
        name, amount = self._case.name, self._tokens
        with serving(self._index_folder, self._config.model_copy(update={"cache_entries": 0})) as handle:
            sleeping = SleepingService(self._lessons.found, SEARCH_S)

            def through(service: Any) -> float:
                self._teach(service)
                return self._timed("served", self._episodes())

            seconds = interleaved(
                {"sleeps": lambda: through(sleeping), "is Serve": lambda: through(handle)}, repetitions=3, warm_up=1
            )
        return [rate(f"{name}: episodes, retrieval {which}", amount, took, "tokens/s") for which, took in seconds.items()], []

    def _teach(self, service: Any) -> Any:
        return self.actor.teach(self._model_dir, self._lessons, service, self._config)

    async def _episodes(self) -> None:
        """Every group once; each time as another attempt, so that no two requests of this engine share a name."""
        attempt = next(self._attempts)
        requests = [replace(request, attempt=attempt) for request in self._batch]
        done = await at_once([lambda each=each: self.actor.run_group(each) for each in requests], self._case.at_once)  # type: ignore[misc]
        assert all(summary.finishes == {"answer": GROUP_SIZE} for summary, _ in done), "the teacher's episodes are well-formed"

    def _timed(self, variant: str, course: Coroutine[Any, Any, None]) -> float:
        """Seconds, from an empty cache: both sides ask the same prompts again and again."""
        self._await(self.actor.llm.reset_prefix_cache())
        before, began = processor_time(os.getpid()), time.perf_counter()
        self._await(course)
        seconds = time.perf_counter() - began
        self._processor[variant].append((processor_time(os.getpid()) - before).tree)
        self._clock[variant].append(seconds)
        return seconds

    def _flow(self, delay_s: float) -> float:
        """Seconds per token of a flow that is neither filling nor running dry."""
        policy = self._teach(SleepingService(self._lessons.found, delay_s))
        self._await(self.actor.llm.reset_prefix_cache())
        self._await(self._flowing())
        end = max(at for at, _ in policy.came)
        begin = end - FLOW_S
        return FLOW_S / sum(tokens for at, tokens in policy.came if at > begin)

    async def _flowing(self) -> None:
        requests = self._lessons.requests

        async def one_after_the_other(place: int) -> None:
            for turn in count():
                number = place + turn * FLOW_GROUPS
                await self.actor.run_group(replace(requests[number % len(requests)], attempt=next(self._attempts)))

        tasks = [asyncio.create_task(one_after_the_other(place)) for place in range(FLOW_GROUPS)]
        await asyncio.wait(tasks, timeout=FILL_S + FLOW_S)  # none of them ends by itself, unless it fails
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, Exception):  # and no CancelledError, which is none
                raise failure

    def _await(self, course: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(course)


@contextmanager
def rolling_out(case: Case) -> Iterator[Rollout]:
    """Nothing is left behind: neither processes nor files nor variables of the environment."""
    with ExitStack() as stack:
        stack.callback(os.environ.update, dict(os.environ))
        stack.callback(os.environ.clear)
        runner = stack.enter_context(asyncio.Runner())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        rollout = Rollout(case, runner, Path(folder))
        stack.callback(lambda: runner.run(rollout.actor.stop()))
        rollout.start()
        yield rollout


@contextmanager
def serving(index_folder: Path, config: RetrievalConfig) -> Iterator[Callable[..., Any]]:
    """A Ray of its own with one replica."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    from retrieval_service.app import deploy

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield deploy(index_folder, config, "bench-retrieval")
    finally:
        ray.shutdown()
