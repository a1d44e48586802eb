"""Which curves the page draws: every chart names its metrics here, and a chart whose metrics were never logged is left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from medr3.observe.record import RunRecord

DIGITS = 5  # significant ones: a page of 5,000 steps stays near a megabyte, and no screen shows more
REWARD = "reward/mean"
# Of the family reward/*, what is no component that an episode is paid for.
_NO_COMPONENT = frozenset({"mean", "std", "correct", "dropped_samples"})
_ANSWERED = frozenset({"answer", "forced"})  # nearly all: what is left is what a reader looks for


@dataclass(frozen=True, slots=True)
class Drawn:
    """One chart. `family` is a prefix, and adds a curve for each metric that has it; `stacked` ones add up; `quiet` hides where all is 0.

    `absent` is what a metric stands for at a step that did not log it; `least` is how many curves make it worth drawing.
    """

    section: str
    title: str
    unit: str
    metrics: dict[str, str] = field(default_factory=dict)  # legend → metric
    family: str = ""
    stacked: bool = False
    quiet: bool = False
    absent: float | None = None
    least: int = 1
    top: float | None = None


DRAWN: tuple[Drawn, ...] = (
    Drawn("learning", "Reward components", "mean value before weights", {"right answers": "reward/correct"}, "reward/"),
    Drawn("learning", "Questions of earlier phases", "share of right answers", family="heldout/earlier/", top=1.0),
    Drawn("learning", "Evidence that was cited", "share per level, I the best", family="evidence/", stacked=True),
    Drawn("learning", "Episodes that ended without an answer", "share", family="finish/", stacked=True, quiet=True, absent=0.0),
    Drawn("episodes", "Response length", "model tokens per episode", {"tokens": "rollout/response_tokens"}),
    Drawn("episodes", "Searches", "per episode", {"searches": "rollout/searches"}),
    Drawn("episodes", "Spread within groups", "reward, standard deviation", {"spread": "reward/std"}),
    Drawn(
        "episodes",
        "Groups that were not trained",
        "so far",
        {
            "equal rewards": "groups/dropped/uniform",
            "too old": "groups/dropped/stale",
            "surplus": "groups/dropped/surplus",
            "voided": "groups/voided",
            "tried again": "groups/requeued",
        },
        quiet=True,
    ),
    Drawn("speed", "Throughput", "model tokens per second of wall time", {"tokens/s": "rollout/tokens_per_s"}),
    Drawn(
        "speed",
        "Where a step's time went",
        "seconds",
        {"waiting for groups": "time/rollout", "learning": "time/learn", "new weights": "time/sync"},
        stacked=True,
    ),
    Drawn("speed", "An episode's time", "seconds", {"generating": "rollout/generate_s", "searching": "rollout/search_s"}),
    Drawn(
        "speed",
        "Age of trained tokens",
        "weight versions",
        {"oldest": "learner/age_max", "mean": "learner/age_mean"},
    ),
    Drawn(
        "speed",
        "Trained tokens by age",
        "tokens a step, by versions",
        family="learner/tokens_of_age_",
        stacked=True,
        absent=0.0,
        least=2,
    ),
    Drawn(
        "speed",
        "Delivery of weights",
        "seconds",
        {"writing": "learner/seconds_publish", "slowest engine": "weights/sync_s", "its pause": "weights/pause_s"},
    ),
    Drawn("retrieval", "Retrieval latency", "milliseconds", {"median": "retrieval/p50_ms", "99 %": "retrieval/p99_ms"}),
    Drawn("retrieval", "Searches answered from the cache", "share", {"hits": "retrieval/hit_rate"}, top=1.0),
    Drawn(
        "learner",
        "Engine against learner",
        "|Δ log-probability|, nats",
        {"mean": "learner/mismatch_mean", "99 %": "learner/mismatch_p99", "largest": "learner/mismatch_max"},
    ),
    Drawn("learner", "Entropy", "nats per token", {"entropy": "learner/entropy"}),
    Drawn("learner", "Distance from the reference", "KL, nats per token", {"KL": "learner/kl_reference"}, quiet=True),
    Drawn(
        "learner",
        "Clipped tokens",
        "share",
        {"from below": "learner/clip_low", "from above": "learner/clip_high"},
        quiet=True,
    ),
    Drawn("learner", "Gradient norm", "before clipping", {"norm": "learner/grad_norm"}),
    Drawn("learner", "Learning rate", "per optimiser step", {"rate": "learner/learning_rate"}),
    Drawn("pool", "Engines by state", "engines", family="pool/engines/", stacked=True),
    Drawn(
        "pool", "Groups in the pool", "groups", {"running": "pool/groups_running", "waiting": "pool/groups_waiting"}, quiet=True
    ),
    Drawn("pool", "Memory of the engines in use", "share of the KV cache", {"mean": "rollout/kv_use"}, quiet=True, top=1.0),
)


def charts_of(record: RunRecord) -> tuple[list[dict[str, Any]], dict[str, list[float | None]]]:
    """The charts that have something to show, as the page's script takes them, and the columns that they draw."""
    logged = _logged(record.metrics)
    charts, columns = [], {"step": [row["step"] for row in record.metrics]}
    for drawn in DRAWN:
        metrics = {legend: name for legend, name in _metrics(drawn, logged).items() if name in logged}
        if len(metrics) < drawn.least or (drawn.quiet and not any(logged[name] for name in metrics.values())):
            continue
        charts.append(
            {
                "section": drawn.section, "title": drawn.title, "unit": drawn.unit, "stacked": drawn.stacked, "top": drawn.top,
                "series": [{"name": legend, "metric": name} for legend, name in metrics.items()],
            }
        )  # fmt: skip
        columns |= {name: column(record.metrics, name, drawn.absent) for name in metrics.values() if name not in columns}
    if REWARD in logged:
        columns[REWARD] = column(record.metrics, REWARD)
    return charts, columns


def column(rows: Iterable[dict[str, Any]], name: str, absent: float | None = None) -> list[float | None]:
    """One metric over the steps; None where it was no number, and `absent` where it was not logged."""
    return [None if (value := row.get(name, absent)) is None else rounded(value) for row in rows]


def rounded(value: float) -> float:
    """
    Example:
        >>> rounded(0.12345678), rounded(117.0)
        (0.12346, 117.0)
    """
    return float(f"{value:.{DIGITS}g}")


def _logged(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Every metric that has a figure, in the order of its first, and whether it was ever other than 0."""
    found: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and name != "time":
                found[name] = found.get(name, False) or value != 0.0
    return found


def _metrics(drawn: Drawn, logged: dict[str, bool]) -> dict[str, str]:
    if not drawn.family:
        return drawn.metrics
    own = {name.removeprefix(drawn.family): name for name in sorted(logged) if name.startswith(drawn.family)}
    members = {legend: name for legend, name in own.items() if "/" not in legend}
    if drawn.family == "reward/":
        members = {legend: name for legend, name in members.items() if legend not in _NO_COMPONENT}
    if drawn.family == "finish/":
        members = {legend: name for legend, name in members.items() if legend not in _ANSWERED}
    if drawn.family == "evidence/":
        members = {_level(legend): name for legend, name in members.items()}
    return drawn.metrics | {legend: name for legend, name in members.items() if not drawn.stacked or logged[name]}


def _level(number: str) -> str:
    return "level " + dict(zip("0123456", ("unknown", "I", "II", "III", "IV", "V", "VI"), strict=True)).get(number, number)
