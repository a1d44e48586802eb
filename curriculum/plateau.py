"""Has a held-out curve stopped rising? A pure detector that says so with its reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import NormalDist, fmean, median
from typing import Any, Literal

from curriculum.rules_config import PlateauConfig

# The standard error of a Theil–Sen slope over that of least squares: 1.06 to 1.08 for windows of 4 to 12 probes with normal noise.
THEIL_SEN_EXCESS = 1.08

State = Literal["early", "rising", "unsure", "flat", "stuck", "falling"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One held-out evaluation at the learner step `step`: `n` questions, share of right answers `score`.

    `noise` is the standard error of the score as a member of this curve, where it was measured (`paired_noise`). Without it the
    binomial one is taken, which is an upper bound where all probes ask the same questions.
    """

    step: int
    score: float
    n: int
    noise: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Flat or not, in words, and the numbers that say so."""

    flat: bool
    state: State
    words: str
    evidence: dict[str, Any]


class PlateauDetector:
    """Flat: the next window of probes would surely gain less than what matters, and `patience` probes confirm it.

    ::

        slope  = median of the slopes between all pairs of the last `window` probes          (Theil–Sen: one bad probe cannot turn it)
        error  = 1.08 · noise of one probe / √Σ(step − mean step)²
        gain   = slope · steps of a window,   at most: (slope + z(confidence) · error) · steps of a window
        at most < min_improvement  → one confirmation      gain ≥ min_improvement → confirmations start anew
        in between                 → they stay as they are (hysteresis: noise alone neither confirms nor forgets)

    Two kinds of flat are not done: one below `min_level` is *stuck*, and a curve that surely loses `min_improvement` is *falling*.
    What this costs and how often it is wrong is measured by `medr3 bench curves`.

    Example:
        >>> detector = PlateauDetector(PlateauConfig(window=4, patience=2))
        >>> for step, score in [(0, 0.5), (3, 0.8), (6, 0.8), (9, 0.81), (12, 0.79), (15, 0.8), (18, 0.8)]:
        ...     verdict = detector.observe(Probe(step, score, n=1000))
        ...     print(step, verdict.state, verdict.evidence["confirmed"])
        0 early 0
        3 early 0
        6 early 0
        9 rising 0
        12 flat 1
        15 flat 2
        18 flat 3
        >>> verdict.flat
        True
    """

    def __init__(self, config: PlateauConfig, probes: Sequence[Probe] = ()) -> None:
        self.config = config
        self.probes: list[Probe] = []
        self._confirmed = 0
        self._verdict = Verdict(False, "early", "no probe yet", {"probes": 0})
        for probe in probes:
            self.observe(probe)

    def observe(self, probe: Probe) -> Verdict:
        """Takes the next probe and judges the curve as it now stands."""
        _check(probe, self.probes[-1] if self.probes else None)
        self.probes.append(probe)
        self._verdict = self._judge()
        return self._verdict

    def verdict(self) -> Verdict:
        """The last one again."""
        return self._verdict

    def snapshot(self) -> list[dict[str, Any]]:
        """JSON for the manifest: the probes, from which all else follows."""
        return [asdict(probe) for probe in self.probes]

    def _judge(self) -> Verdict:
        config, window = self.config, self.probes[-self.config.window :]
        evidence: dict[str, Any] = {
            "probes": len(self.probes), "window": config.window, "patience": config.patience, "min_improvement": config.min_improvement,
            "confidence": config.confidence, "slope_per_step": theil_sen(window), "standard_error": noise_of(window), "confirmed": 0,
        }  # fmt: skip
        if len(window) < config.window:
            return Verdict(False, "early", f"early: {len(window)} probes, and a slope takes {config.window}", evidence)
        slope, noise = evidence["slope_per_step"], evidence["standard_error"]
        gain = slope * config.horizon
        doubt = NormalDist().inv_cdf(config.confidence) * slope_error(window, noise) * config.horizon
        evidence |= {
            "gain": gain,
            "gain_at_most": gain + doubt,
            "doubt": doubt,
            "level": median(probe.score for probe in window),
        }
        state = self._state(gain, doubt, evidence["level"])
        evidence["confirmed"] = self._confirmed
        words = (
            f"{state}: the next {config.horizon} steps would gain {gain:+.3f}, at most {gain + doubt:+.3f}"
            f" ({config.confidence:.0%} sure); {config.min_improvement:g} matters"
        )
        if state in ("flat", "stuck"):
            words += f"; confirmed by {self._confirmed} of {config.patience} probes"
        if state == "stuck":
            words += f"; at {evidence['level']:.3f} it is below min_level {config.min_level:g}"
        if doubt >= config.min_improvement:
            words += f"; one probe is ± {noise:.3f}: more questions would decide sooner"
        done = state == "flat" or (state == "stuck" and config.when_stuck == "leave")
        return Verdict(done and self._confirmed >= config.patience, state, words, evidence)

    def _state(self, gain: float, doubt: float, level: float) -> State:
        """Counts a confirmation, or starts anew."""
        matters = self.config.min_improvement
        if gain + doubt < -matters:
            self._confirmed = 0
            return "falling"
        if gain + doubt < matters:
            self._confirmed += 1
            least = self.config.min_level
            return "flat" if least is None or level >= least else "stuck"
        if gain >= matters:
            self._confirmed = 0
            return "rising"
        return "unsure"


def theil_sen(probes: Sequence[Probe]) -> float:
    """The median slope between all pairs of probes, per learner step; 0 for fewer than two."""
    slopes = [(late.score - early.score) / (late.step - early.step) for early, late in combinations(probes, 2)]
    return median(slopes) if slopes else 0.0


def slope_error(probes: Sequence[Probe], noise: float) -> float:
    """The standard error of `theil_sen` where every score carries this noise."""
    middle = fmean(probe.step for probe in probes)
    return THEIL_SEN_EXCESS * noise / math.sqrt(sum((probe.step - middle) ** 2 for probe in probes))


def noise_of(probes: Sequence[Probe]) -> float:
    """The standard error of one score of these: as measured, else binomial at their common share."""
    questions = sum(probe.n for probe in probes)
    # One right and one wrong answer more: even a curve at 0 or 1 has some noise.
    share = (sum(probe.score * probe.n for probe in probes) + 1) / (questions + 2)
    binomial = [math.sqrt(share * (1 - share) / probe.n) if probe.noise is None else probe.noise for probe in probes]
    return math.sqrt(fmean(noise**2 for noise in binomial))


def paired_noise(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The noise of a score among probes of the *same* questions, from two in a row: only answers that flip are noise.

    Which questions are asked is shared and cancels, so it lies below the binomial noise; the flips that all go one way are the gain
    and cancel too. Flips that outlast a probe are seen as fewer than they are, so it may be too small: it is not the default.

    Example:
        >>> round(paired_noise([True] * 150 + [False] * 50, [True] * 140 + [False] * 20 + [True] * 20 + [False] * 20), 4)
        0.0192
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"paired probes ask the same questions: {len(before)} and {len(after)} answers are no pair")
    gained = sum(late and not early for early, late in zip(before, after, strict=True))
    lost = sum(early and not late for early, late in zip(before, after, strict=True))
    n = len(before)
    flips = max(1.0, gained + lost - (gained - lost) ** 2 / n)  # no flip at all is luck, not certainty
    return math.sqrt(flips / 2) / n


def _check(probe: Probe, last: Probe | None) -> None:
    where = f"probe at step {probe.step}"
    if not math.isfinite(probe.score):
        raise ValueError(f"{where}: the score is {probe.score}, which says nothing about the policy")
    if probe.n < 1:
        raise ValueError(f"{where}: {probe.n} questions; it needs at least one")
    if probe.noise is None and not 0 <= probe.score <= 1:
        raise ValueError(
            f"{where}: the score is {probe.score:g}; a share of right answers lies between 0 and 1, else tell its noise"
        )
    if probe.noise is not None and not (math.isfinite(probe.noise) and probe.noise > 0):
        raise ValueError(f"{where}: its noise is {probe.noise}; it must be a number above 0")
    if last is not None and probe.step <= last.step:
        raise ValueError(f"{where}: the last one was at step {last.step}; steps must grow")
