"""Has a held-out curve stopped rising? A pure detector that says so with its reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

from curriculum.config import PlateauConfig


@dataclass(frozen=True, slots=True)
class Probe:
    """One held-out evaluation: `n` questions, mean score `score`, at the learner step `step`."""

    step: int
    score: float
    n: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Flat or rising, in words, and the numbers that say so."""

    flat: bool
    words: str
    evidence: dict[str, Any]


class PlateauDetector:
    """The rule: flat when the best of the last `patience` probes is not `min_improvement` above the best before them.

    The best before is an extreme of noisy scores, so the rule errs towards leaving. Measured over 400 seeds, a probe of 200
    questions every 3 steps, patience 3: a curve that rises 0.02 a step was never left while it rose; one that saturates within
    0.01 of its end by step 22 was left at step 30 in the median, 42 in 95 %; a drift of 0.004 a step, below the noise of a probe
    (± 0.035), was left at step 18 in the median. Where such a drift matters, raise `patience` or the number of questions. The
    Theil–Sen slope (the median of the slopes between all pairs of the last probes, which one bad probe cannot turn) and the
    standard error of one probe stand in the evidence, so that a reader can judge the decision.

    Example:
        >>> detector = PlateauDetector(PlateauConfig(patience=2, min_improvement=0.01))
        >>> for step, score in [(0, 0.5), (3, 0.8), (6, 0.8), (9, 0.79)]:
        ...     verdict = detector.observe(Probe(step, score, n=200))
        >>> verdict.flat, verdict.words.split(":")[0]
        (True, 'flat')
    """

    def __init__(self, config: PlateauConfig, probes: Sequence[Probe] = ()) -> None:
        self.config = config
        self.probes: list[Probe] = []
        for probe in probes:
            self._add(probe)

    def observe(self, probe: Probe) -> Verdict:
        """Takes the next probe and judges the curve as it now stands."""
        self._add(probe)
        return self.verdict()

    def verdict(self) -> Verdict:
        recent, before = self.probes[-self.config.patience :], self.probes[: -self.config.patience]
        evidence: dict[str, Any] = {
            "probes": len(self.probes),
            "patience": self.config.patience,
            "min_improvement": self.config.min_improvement,
            "best_recent": max((probe.score for probe in recent), default=None),
            "best_before": max((probe.score for probe in before), default=None),
            "slope_per_step": theil_sen(recent),
            "standard_error": standard_error(recent[-1]) if recent else None,
        }
        if not before:
            return Verdict(
                False, f"rising: {len(self.probes)} probes, and a plateau takes {self.config.patience + 1}", evidence
            )
        gain = evidence["best_recent"] - evidence["best_before"]
        # Scores are multiples of 1/n: without the tolerance, 0.81 − 0.80 would not reach 0.01.
        flat = gain < self.config.min_improvement - 1e-9
        word, relation = ("flat", "is not") if flat else ("rising", "is")
        words = (
            f"{word}: the best of the last {len(recent)} probes, {evidence['best_recent']:.3f}, {relation} "
            f"{self.config.min_improvement:.3f} above the best before, {evidence['best_before']:.3f} "
            f"(slope {evidence['slope_per_step']:+.4f} a step, one probe ± {evidence['standard_error']:.3f})"
        )
        return Verdict(flat, words, {**evidence, "gain": gain})

    def snapshot(self) -> list[dict[str, Any]]:
        return [asdict(probe) for probe in self.probes]

    def _add(self, probe: Probe) -> None:
        if not math.isfinite(probe.score):
            raise ValueError(f"probe at step {probe.step}: the score is {probe.score}, which says nothing about the policy")
        if probe.n < 1:
            raise ValueError(f"probe at step {probe.step}: {probe.n} questions; it needs at least one")
        if self.probes and probe.step <= self.probes[-1].step:
            raise ValueError(f"probe at step {probe.step}: the last one was at step {self.probes[-1].step}; steps must grow")
        self.probes.append(probe)


def theil_sen(probes: Sequence[Probe]) -> float:
    """The median slope between all pairs of probes, per learner step; 0 for fewer than two."""
    slopes = [(late.score - early.score) / (late.step - early.step) for early, late in combinations(probes, 2)]
    return median(slopes) if slopes else 0.0


def standard_error(probe: Probe) -> float:
    """Of the score as a share of right answers; scores beyond [0, 1] are no shares and are taken at the nearest end."""
    share = min(1.0, max(0.0, probe.score))
    return math.sqrt(share * (1 - share) / probe.n)
