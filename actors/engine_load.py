"""How full an engine's KV cache is, and whether requests push each other out of it, as vLLM's scheduler itself counts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats


class EngineLoad(PrometheusStatLogger):
    """Hears the scheduler after every step and keeps four numbers.

    It is a PrometheusStatLogger by name alone: vLLM adds a real one, which takes time with every token, unless it is given one.
    """

    kv_use = 0.0  # now, 0 to 1
    preemptions = 0  # since the start; those that an update forces are not among them
    running = 0
    recomputed = 0  # tokens that preempted requests computed anew, an update's included
    _peak = 0.0
    _forced = 0

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        """Its parent would set up a hundred metrics."""

    def record(self, scheduler_stats: SchedulerStats | None, *_: Any, **__: Any) -> None:
        if scheduler_stats is None:
            return
        self.running = scheduler_stats.num_running_reqs
        self.kv_use = scheduler_stats.kv_cache_usage
        self._peak = max(self._peak, self.kv_use)
        came_back = scheduler_stats.prefix_cache_stats
        self.recomputed += came_back.preempted_queries - came_back.preempted_hits
        forced = min(self._forced, came_back.preempted_requests)
        self._forced -= forced
        self.preemptions += came_back.preempted_requests - forced

    def expect_forced(self) -> None:
        """An update has just preempted everything that was running: when that comes back, memory was not the reason."""
        self._forced = self.running

    def forget_forced(self) -> None:
        """None of those is left that the update preempted."""
        self._forced = 0

    def idle(self) -> None:
        """Nothing is in flight: a scheduler that does not step says nothing, also not that all was aborted."""
        self.kv_use, self.running = 0.0, 0

    def take_peak(self) -> float:
        """The fullest since it was asked last."""
        peak, self._peak = max(self._peak, self.kv_use), self.kv_use
        return peak

    def log(self) -> None:
        """Nothing is logged."""

    def log_engine_initialized(self) -> None:
        """Nothing is logged."""

    def record_sleep_state(self, *_: Any) -> None:
        """The engine knows."""

    def record_admission_rejection(self, reason: str) -> None:
        """The engine bounds no queue."""


class ScheduledLLM(AsyncLLM):
    """Hears what the scheduler counts with every step, and does not itself count every token, which takes a fifth of its time."""

    def _run_output_handler(self) -> None:
        self.log_stats = False
        super()._run_output_handler()

    @property
    def load(self) -> EngineLoad:
        """The one that vLLM made of the class that it was started with."""
        assert self.logger_manager is not None
        return next(logger for logger in self.logger_manager.stat_loggers if isinstance(logger, EngineLoad))
