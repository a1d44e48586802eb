"""How often a healthy run is called collapsed, and how soon a collapsed one: the collapse rule on synthetic metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.harness import Result, figure, ratio
from curriculum.collapse import CollapseDetector, Health
from curriculum.rules_config import CollapseConfig

STEPS = 150  # of one phase
FALSE_GOAL = 0.005  # of healthy phases that are called collapsed
DELAY_GOAL = 10.0  # steps from the first sign until it is called so, median


@dataclass(frozen=True)
class Metrics:
    """How healthy metrics move, and how long a collapse takes. Two sets share neither a value nor a seed."""

    seed: int
    reward_noise: tuple[float, ...]  # of a step's mean
    entropy_times: tuple[float, ...]  # steps in which it falls to 37 % of its way
    length_trends: tuple[float, ...]  # by which factor it moves within the phase
    durations: tuple[int, ...]  # steps from the first sign to the end of a collapse


TUNING = Metrics(
    2_000, reward_noise=(0.02, 0.05), entropy_times=(30, 60, 120), length_trends=(0.6, 1, 1.6), durations=(1, 6, 15)
)
REPORT = Metrics(
    70_001, reward_noise=(0.03, 0.06), entropy_times=(25, 45, 90), length_trends=(0.5, 0.8, 1.4, 1.9), durations=(2, 9, 20)
)


def healthy(m: Metrics, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Reward rises and saturates, entropy falls, lengths wander, most episodes end with an answer."""
    t = np.arange(STEPS)
    start, end = rng.uniform(0.15, 0.6), rng.uniform(0.7, 1.1)
    reward = end - (end - start) * np.exp(-t / rng.uniform(6, 60)) + rng.normal(0, rng.choice(m.reward_noise), STEPS)
    least = rng.uniform(0.15, 0.4)  # of the entropy that it starts with
    entropy = rng.uniform(0.1, 1.0) * (least + (1 - least) * np.exp(-t / rng.choice(m.entropy_times)))
    wander = np.zeros(STEPS)
    for step in range(1, STEPS):
        wander[step] = 0.9 * wander[step - 1] + rng.normal(0, 0.03)
    length = rng.uniform(60, 900) * np.exp(np.log(rng.choice(m.length_trends)) * t / STEPS + wander)
    answered = np.clip(rng.uniform(0.85, 1) - rng.uniform(0, 0.25) * np.exp(-t / 10) + rng.normal(0, 0.015, STEPS), 0, 1)
    return {
        "reward/mean": reward, "learner/entropy": entropy * np.exp(rng.normal(0, 0.06, STEPS)), "rollout/response_tokens": length,
        "finish/answer": answered,
    }  # fmt: skip


KINDS = ("entropy gone", "entropy runs away", "no answers")


def collapsing(kind: str, m: Metrics, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], int]:
    """A healthy phase that falls apart from some step on; also that step."""
    metrics, onset = healthy(m, rng), int(rng.integers(15, 110))
    way = np.clip((np.arange(STEPS) - onset) / rng.choice(m.durations), 0, 1)  # 0 → 1 over the collapse
    change = {
        "entropy gone": {"reward/mean": 0.25, "learner/entropy": 0.05, "rollout/response_tokens": 0.45, "finish/answer": 0.9},
        "entropy runs away": {"reward/mean": 0.1, "learner/entropy": 5, "rollout/response_tokens": 2.2, "finish/answer": 0.3},
        "no answers": {"reward/mean": 0.1, "learner/entropy": 0.9, "rollout/response_tokens": 1.1, "finish/answer": 0.15},
    }[kind]
    return {name: values * change[name] ** way for name, values in metrics.items()}, onset


def verdicts(metrics: dict[str, np.ndarray]) -> Iterator[Health]:
    detector = CollapseDetector(CollapseConfig())
    for step in range(STEPS):
        yield detector.observe(step, {name: float(values[step]) for name, values in metrics.items()}).health


def measure(m: Metrics, count: int) -> tuple[list[Result], list[Result]]:
    """Figures and ratios over `count` phases of each kind of collapse, and five times as many healthy ones: false alarms are rare."""
    rng = np.random.default_rng(m.seed)
    found = [list(verdicts(healthy(m, rng))) for _ in range(5 * count)]
    false = float(np.mean([Health.COLLAPSED in phase for phase in found]))
    figures = [
        figure(f"healthy phases of {STEPS} steps: called collapsed", 100 * false, "%"),
        figure(
            "healthy phases: warned of at least once", 100 * float(np.mean([Health.WARNING in phase for phase in found])), "%"
        ),
    ]
    ratios = [ratio("healthy phases: share called collapsed", false, FALSE_GOAL, at_most=True)]
    for kind in KINDS:
        delays, missed = [], 0
        for _ in range(count):
            metrics, onset = collapsing(kind, m, rng)
            called = next(
                (step for step, health in enumerate(verdicts(metrics)) if health is Health.COLLAPSED and step >= onset), None
            )
            if called is None:
                missed += 1
            else:
                delays.append(called - onset)
        figures += [
            figure(f"{kind}: called after, median", float(np.median(delays)), "steps"),
            figure(f"{kind}: called after, 95 %", float(np.quantile(delays, 0.95)), "steps"),
            figure(f"{kind}: never called", 100 * missed / count, "%"),
        ]
        ratios.append(ratio(f"{kind}: median steps until called", float(np.median(delays)), DELAY_GOAL, at_most=True))
    return figures, ratios
