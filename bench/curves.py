"""How often a phase is left too early, and how late otherwise: the plateau rule on synthetic held-out curves of known truth.

A curve is a share of right answers for every learner step; it is probed every 3 steps with the noise of real questions. *Rising*
means that it gains a point (0.01) a step or more; its *end* is the first step from which it never does again. Leaving before the end
is a false advance; the steps between the end and leaving are the delay, told in windows of 6 probes (18 steps).

The shipped defaults were chosen on `TUNING`. What is reported runs on `REPORT`, which shares neither a parameter nor a seed with it.
The collapse rule (bench/collapses.py) is measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench import collapses
from bench.harness import Result, figure, ratio, result
from curriculum.plateau import PlateauDetector, Probe, paired_noise
from curriculum.rules_config import PlateauConfig

STEPS, PROBE_EVERY, RISE = 240, 3, 0.01
FALSE_GOAL, DELAY_GOAL = 0.02, 1.5
WINDOW_STEPS = PlateauConfig().horizon
Curve = NDArray[np.float64]  # truth by learner step
T = np.arange(STEPS + 1, dtype=np.float64)


@dataclass(frozen=True)
class Parameters:
    """From what a set of curves is drawn."""

    seed: int
    starts: tuple[float, ...]
    ends: tuple[float, ...]
    rates: tuple[float, ...]  # of a straight rise, a step
    times: tuple[float, ...]  # steps in which a saturating rise makes 63 % of its way
    middles: tuple[float, ...]  # the step at which an S is half way
    widths: tuple[float, ...]
    leads: tuple[float, ...]  # steps before a jump
    amplitudes: tuple[float, ...]
    periods: tuple[float, ...]
    drifts: tuple[float, ...]


TUNING = Parameters(
    seed=1_000, starts=(0.2, 0.3, 0.4, 0.5), ends=(0.8, 0.85, 0.9, 0.95), rates=(0.01, 0.015, 0.02, 0.03), times=(5, 8, 11, 14),
    middles=(10, 15, 20), widths=(3, 5, 7), leads=(0, 4, 8), amplitudes=(0.01, 0.02, 0.03), periods=(12, 20, 28),
    drifts=(0.002, 0.004, 0.006),
)  # fmt: skip
REPORT = Parameters(
    seed=90_001, starts=(0.13, 0.24, 0.36, 0.47), ends=(0.77, 0.83, 0.92, 0.97), rates=(0.0105, 0.0125, 0.0175, 0.026, 0.035),
    times=(4, 6.5, 9.5, 12.5, 18), middles=(8, 12.5, 17.5, 23), widths=(2.5, 4, 6, 8), leads=(1.5, 5.5, 9),
    amplitudes=(0.012, 0.018, 0.027), periods=(10, 16, 24, 32), drifts=(0.0015, 0.003, 0.005),
)  # fmt: skip


class Shape(NamedTuple):
    """One curve and the step at which it ends to rise."""

    truth: Curve
    end: int


def shapes(family: str, parameters: Parameters, count: int) -> Iterator[Shape]:
    """`count` curves of a family, the same ones at every call."""
    rng = np.random.default_rng([parameters.seed, FAMILIES.index(family)])
    for _ in range(count):
        yield _draw(family, parameters, rng)


FAMILIES = ("rise", "saturation", "s-curve", "step", "oscillation", "flat", "drift", "collapse")
RISING = FAMILIES[:5]  # they rise and end; of these the goals speak


def _draw(family: str, p: Parameters, rng: np.random.Generator) -> Shape:
    start, end = rng.choice(p.starts), rng.choice(p.ends)
    if family == "saturation":
        return _shape(end - (end - start) * np.exp(-T / rng.choice(p.times)))
    if family == "s-curve":
        return _shape(start + (end - start) / (1 + np.exp(-(T - rng.choice(p.middles)) / rng.choice(p.widths))))
    if family == "step":
        return _shape(np.clip(start + 0.08 * (T - rng.choice(p.leads)), start, end))
    if family == "flat":
        return Shape(np.full(STEPS + 1, end), 0)
    if family == "drift":
        return Shape(np.minimum(end, start + rng.choice(p.drifts) * T), 0)
    rise = np.minimum(end, start + rng.choice(p.rates) * T)
    if family == "collapse":
        peak = _shape(rise).end + 6
        return Shape(np.maximum(0.05, rise - 0.03 * np.maximum(0, T - peak)), peak - 6)
    shape = _shape(rise)
    if family == "oscillation":  # the rise below it says when it ends
        wave = rng.choice(p.amplitudes) * np.sin(2 * np.pi * (T / rng.choice(p.periods) + rng.random()))
        return Shape(np.clip(shape.truth + wave, 0, 1), shape.end)
    return shape


def _shape(truth: Curve) -> Shape:
    rising = np.flatnonzero(np.diff(truth) >= RISE - 1e-9)
    return Shape(truth, int(rising[-1]) + 1 if len(rising) else 0)


@dataclass(frozen=True)
class Noise:
    """How a probe sees the truth."""

    questions: int
    paired: bool = False  # the same questions in every probe
    measured: bool = False  # the detector is told the noise that flipped answers show

    def probes(self, truth: Curve, rng: np.random.Generator) -> Iterator[Probe]:
        steps = range(0, STEPS + 1, PROBE_EVERY)
        if not self.paired:
            for step in steps:
                yield Probe(step, float(rng.binomial(self.questions, truth[step])) / self.questions, self.questions)
            return
        before: list[bool] | None = None
        for step, answers in zip(steps, self._answers([truth[step] for step in steps], rng), strict=True):
            noise = paired_noise(before or answers, answers) if self.measured and before else None
            yield Probe(step, fmean(answers), self.questions, noise)
            before = answers

    def _answers(self, truth: list[float], rng: np.random.Generator) -> Iterator[list[bool]]:
        """A question is answered where skill − its difficulty + the moment's luck is above 0.

        Difficulties stay and make 70 % of the variance; luck is new with every probe but for a third that outlasts it, as weights
        move on from where they were. Over many sets of questions the share of right answers is the truth.
        """
        fixed, memory = 0.7, 0.3
        normal = NormalDist()
        difficulty = rng.normal(0, fixed**0.5, self.questions)
        luck = rng.normal(0, (1 - fixed) ** 0.5, self.questions)
        for share in truth:
            skill = normal.inv_cdf(min(1 - 1e-6, max(1e-6, share)))
            yield [bool(right) for right in skill - difficulty + luck > 0]
            luck = memory * luck + (1 - memory**2) ** 0.5 * rng.normal(0, (1 - fixed) ** 0.5, self.questions)


# The demo's phases as docs/demo.md reports their ends: two that rise and saturate, and one with little left to learn.
DEMO = (0.92 - 0.16 * np.exp(-T / 7), 0.94 - 0.40 * np.exp(-T / 12), 0.88 - 0.02 * np.exp(-T / 8))

Rule = Callable[[], Callable[[Probe], bool]]  # makes one that is asked after every probe


def slope_rule(config: PlateauConfig) -> Rule:
    """The rule of this system."""

    def make() -> Callable[[Probe], bool]:
        detector = PlateauDetector(config)
        return lambda probe: detector.observe(probe).flat

    return make


def best_rule(patience: int = 3, min_improvement: float = 0.01) -> Rule:
    """Patience: flat when the best of the last probes is no better than the best before them."""

    def make() -> Callable[[Probe], bool]:
        scores: list[float] = []

        def flat(probe: Probe) -> bool:
            scores.append(probe.score)
            recent, before = scores[-patience:], scores[:-patience]
            return bool(before) and max(recent) - max(before) < min_improvement - 1e-9

        return flat

    return make


def average_rule(width: int = 3, min_improvement: float = 0.01) -> Rule:
    """Moving average: flat when the mean of the last probes is no better than the mean of as many before them."""

    def make() -> Callable[[Probe], bool]:
        scores: list[float] = []

        def flat(probe: Probe) -> bool:
            scores.append(probe.score)
            return len(scores) >= 2 * width and fmean(scores[-width:]) - fmean(scores[-2 * width : -width]) < min_improvement

        return flat

    return make


RULES: dict[str, Rule] = {"slope": slope_rule(PlateauConfig()), "patience": best_rule(), "average": average_rule()}


@dataclass
class Outcome:
    """How a rule did on one family."""

    delays: list[int]  # steps after the end; below 0 is too early
    forgone: list[float]  # what the curve would still have gained

    @property
    def false(self) -> float:
        return fmean(delay < 0 for delay in self.delays)

    def delay(self, quantile: float) -> float:
        """In windows, of those that were not left too early."""
        return float(np.quantile([delay for delay in self.delays if delay >= 0], quantile)) / WINDOW_STEPS


def measure(rule: Rule, family: str, noise: Noise, parameters: Parameters, count: int) -> Outcome:
    """Every rule sees the same curves with the same noise. What is never left counts as left at the last step."""
    delays, forgone = [], []
    for number, shape in enumerate(shapes(family, parameters, count)):
        rng = np.random.default_rng([parameters.seed, number, noise.questions, FAMILIES.index(family)])
        ask = rule()
        left = next((probe.step for probe in noise.probes(shape.truth, rng) if ask(probe)), STEPS)
        delays.append(left - shape.end)
        forgone.append(float(shape.truth[left:].max() - shape.truth[left]))
    return Outcome(delays, forgone)


def demo_steps(rule: Rule, count: int) -> float:
    """Steps that the demo's three phases take together, on average; 200 questions, the same in every probe."""
    total = 0
    for number in range(count):
        for index, truth in enumerate(DEMO):
            ask = rule()
            probes = Noise(200, paired=True).probes(truth, np.random.default_rng([REPORT.seed, number, index]))
            total += next((probe.step for probe in probes if ask(probe)), STEPS)
    return total / count


def together(outcomes: list[Outcome]) -> Outcome:
    return Outcome(
        [delay for outcome in outcomes for delay in outcome.delays], [lost for outcome in outcomes for lost in outcome.forgone]
    )


CONDITIONS = {
    "100 questions": Noise(100), "200 questions": Noise(200), "400 questions": Noise(400),
    "200, the same in every probe": Noise(200, paired=True), "200, the same, noise measured": Noise(200, paired=True, measured=True),
}  # fmt: skip


def run(count: int = 500, phases: int = 120) -> Result:
    """Rates and delays by rule and number of questions; `count` curves of each family, `phases` of each kind of collapse."""
    began = time.perf_counter()
    figures, ratios = [], []
    for condition, noise in CONDITIONS.items():
        rules = RULES if condition != "200, the same, noise measured" else {"slope": RULES["slope"]}
        for name, rule in rules.items():
            found = {family: measure(rule, family, noise, REPORT, count) for family in RISING}
            both = together(list(found.values()))
            label = f"{condition}, {name}"
            figures += [
                figure(f"{label}: false advances", 100 * both.false, "%"),
                figure(f"{label}: median delay", both.delay(0.5), "windows"),
                figure(f"{label}: delay, 95 %", both.delay(0.95), "windows"),
                figure(f"{label}: gain forgone, 95 %", float(np.quantile(both.forgone, 0.95)), "accuracy"),
            ]
            if name == "slope":
                ratios.append(ratio(f"{condition}: share of false advances", both.false, FALSE_GOAL, at_most=True))
                ratios.append(ratio(f"{condition}: median delay in windows", both.delay(0.5), DELAY_GOAL, at_most=True))
            if condition == "200 questions":
                figures += _families(name, found, count)
    figures += [
        figure(f"the demo's phases, {name}: steps", demo_steps(rule, count // 2), "steps") for name, rule in RULES.items()
    ]
    more_figures, more_ratios = collapses.measure(collapses.REPORT, phases)
    seconds = time.perf_counter() - began
    notes = [
        f"{count} curves of each of {', '.join(RISING)}; a window is {WINDOW_STEPS} steps; {seconds:.0f} s",
        "flat, drift and collapse do not count as rising: their figures say when they are left",
    ]
    return result(figures + more_figures, ratios + more_ratios, notes)


def _families(name: str, found: dict[str, Outcome], count: int) -> list[Result]:
    """By family, with 200 questions; those that hardly rise are measured here as well."""
    rows = [figure(f"  {family}, {name}: false advances", 100 * outcome.false, "%") for family, outcome in found.items()]
    rows += [figure(f"  {family}, {name}: median delay", outcome.delay(0.5), "windows") for family, outcome in found.items()]
    for family in FAMILIES[len(RISING) :]:
        outcome = measure(RULES[name], family, Noise(200), REPORT, count)
        rows.append(figure(f"  {family}, {name}: left after, median", float(np.median(outcome.delays)), "steps"))
        if family == "collapse":
            rows.append(figure(f"  {family}, {name}: left while it rose", 100 * outcome.false, "%"))
    return rows
