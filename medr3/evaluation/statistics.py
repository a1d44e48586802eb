"""What may be said of figures that were measured on a sample: intervals, paired tests, calibration. Pure, seeded, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 2_000  # the ends of a 95 % interval are then known to about 0.002 at 200 questions
LEVEL = 0.95
CHUNK = 4_000_000  # drawn indices in memory at once: 32 MB
BINS = 10

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and the percentile interval around it.

    Example:
        >>> Interval(0.5, 0.4, 0.6).shown(), Interval(0.5, 0.4, 0.6).shown(signed=True, digits=1)
        ('0.500 (0.400 to 0.600)', '+0.5 (+0.4 to +0.6)')
    """

    mean: float
    low: float
    high: float

    def shown(self, *, digits: int = 3, signed: bool = False, bold: bool = False, beside: str = "") -> str:
        """As a table has it; `bold` marks the mean in Markdown, `beside` follows within the bracket."""
        form, mark = f"{'+' if signed else ''}.{digits}f", "**" if bold else ""
        return f"{mark}{self.mean:{form}}{mark} ({self.low:{form}} to {self.high:{form}}{beside})"


class Bin(NamedTuple):
    """Answers of like confidence: how sure they were, and how often they were right."""

    confidence: float
    accuracy: float
    n: int


class Paired(NamedTuple):
    """Second minus first on the same questions; `p` is two-sided."""

    difference: Interval
    p: float


def bootstrap(values: Sequence[float] | Floats, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """The mean with its percentile interval over resamples of the values: θ*_b = mean of n draws with replacement.

    Example:
        >>> bootstrap([1.0, 1.0, 1.0])
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    sample = _floats(values)
    low, high = _percentiles(_means(sample, seed, resamples), level)
    return Interval(float(sample.mean()), low, high)


def paired_bootstrap(
    first: Sequence[float] | Floats, second: Sequence[float] | Floats, seed: int = 0, resamples: int = RESAMPLES
) -> Paired:
    """Questions are drawn, not answers, so what makes a question hard falls out of the difference.

    p = 2 · min(P(θ* ≤ 0), P(θ* ≥ 0)), each counted with one more resample, so that it is never 0.
    """
    a, b = _floats(first), _floats(second)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be as many, got {a.size} and {b.size}")
    differences = b - a
    means = _means(differences, seed, resamples)
    low, high = _percentiles(means, LEVEL)
    below, above = (int((means <= 0).sum()) + 1, int((means >= 0).sum()) + 1)
    return Paired(Interval(float(differences.mean()), low, high), min(1.0, 2 * min(below, above) / (resamples + 1)))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar: of n questions that one of two systems got right, k ≤ n/2 went the rarer way.

    p = min(1, 2 · Σ_{i ≤ k} C(n, i) / 2^n)

    Example:
        >>> mcnemar(0, 5), round(mcnemar(2, 10), 4), mcnemar(7, 7)
        (0.0625, 0.0386, 1.0)
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts cannot be negative, got {only_first} and {only_second}")
    n, rarer = only_first + only_second, min(only_first, only_second)
    term, total = 1, 1  # C(n, 0); whole numbers stay exact at any n
    for i in range(1, rarer + 1):
        term = term * (n - i + 1) // i
        total += term
    return min(1.0, 2 * total / 2**n) if n < _FLOAT_BITS else min(1.0, _ratio(2 * total, n))


_FLOAT_BITS = 1_000  # 2^n fits a float


def _ratio(numerator: int, power: int) -> float:
    """numerator / 2^power, for numbers that no float holds."""
    shift = max(0, numerator.bit_length() - 64)
    return float(np.ldexp(float(numerator >> shift), shift - power))


def calibration(confidence: Sequence[float] | Floats, correct: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Answers in bins of equal width of confidence, 0 to 1; empty bins are left out.

    Example:
        >>> calibration([0.95, 0.95, 0.2], [True, False, False])
        [Bin(confidence=0.2, accuracy=0.0, n=1), Bin(confidence=0.95, accuracy=0.5, n=2)]
    """
    sure, right = _floats(confidence), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.min() < 0 or sure.max() > 1:
        raise ValueError("needs one confidence between 0 and 1 for every answer")
    place = np.minimum((sure * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    kept = np.flatnonzero(count)
    mean_sure = np.bincount(place, sure, bins)[kept] / count[kept]
    mean_right = np.bincount(place, right, bins)[kept] / count[kept]
    return [Bin(float(c), float(a), int(n)) for c, a, n in zip(mean_sure, mean_right, count[kept], strict=True)]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE = Σ_b n_b / n · |accuracy_b − confidence_b|."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / total


def brier(confidence: Sequence[float] | Floats, correct: Sequence[bool]) -> float:
    """The mean of (confidence − right)²: 0 is perfect, 0.25 is what always saying one half earns."""
    sure, right = _floats(confidence), np.asarray(correct, dtype=np.float64)
    return float(((sure - right) ** 2).mean())


def _floats(values: Sequence[float] | Floats) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError("needs at least one value")
    if not np.isfinite(sample).all():
        raise ValueError("a value is not finite, so no mean says anything")
    return sample


def _means(sample: Floats, seed: int, resamples: int) -> Floats:
    rng, rows = np.random.default_rng(seed), max(1, CHUNK // sample.size)
    parts = [
        sample[rng.integers(0, sample.size, (min(rows, resamples - start), sample.size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _percentiles(means: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
