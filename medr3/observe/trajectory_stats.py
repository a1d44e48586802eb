"""A run's episodes in figures: by phase, source and outcome, with the ages of what was trained and the bias of what was not."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from medr3.observe.plain import plain_line
from trajectories.groups import Outcome
from trajectories.reading import OPEN, ROLLED_BACK, Record
from trajectories.rules import flat, lengths, owners
from trajectories.schema import Source

COLUMNS = [
    "group_id", "phase", "source", "outcome", "reason", "reward", "correct", "finish", "segments", "versions", "searches",
    "learner_number",
]  # fmt: skip


@dataclass(slots=True)
class Cell:
    """The episodes of one phase and source that ended in one way."""

    groups: set[str] = field(default_factory=set)
    rewards: list[float] = field(default_factory=list)
    correct: int = 0
    tokens: list[int] = field(default_factory=list)  # of the model
    searches: int = 0
    finishes: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        n = len(self.rewards)
        return {
            "groups": len(self.groups), "episodes": n, "reward": fmean(self.rewards), "correct": self.correct / n,
            "response_tokens": {"mean": fmean(self.tokens), "median": median(self.tokens), "most": max(self.tokens)},
            "searches": self.searches / n, "finishes": {name: count / n for name, count in sorted(self.finishes.items())},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Mean response tokens of one phase's trained episodes beside those that finished and were not trained."""

    phase: str
    trained: float
    not_trained: float | None
    by_reason: dict[str, float]

    @property
    def ratio(self) -> float | None:
        """Above 1, longer episodes were trained less often than they were made."""
        return None if self.not_trained is None or not self.trained else self.not_trained / self.trained


@dataclass(frozen=True, slots=True)
class TrajectoryStats:
    """All of it; `as_dict` is what --json prints."""

    cells: dict[tuple[str, str, str], dict[str, Any]]
    ages: dict[int, int]  # versions → trained episodes, by their oldest token
    drops: dict[str, int]  # reason → groups
    bias: list[LengthBias]

    def as_dict(self) -> dict[str, Any]:
        return {
            "by_phase_source_outcome": [
                {"phase": phase, "source": source, "outcome": outcome, **cell}
                for (phase, source, outcome), cell in self.cells.items()
            ],
            "ages": {str(age): n for age, n in self.ages.items()},
            "drops": self.drops,
            "length_bias": [{**asdict(each), "ratio": each.ratio} for each in self.bias],
        }


def trajectory_stats(record: Record) -> TrajectoryStats:
    """Reads a step at a time, and neither tokens nor texts."""
    cells: defaultdict[tuple[str, str, str], Cell] = defaultdict(Cell)
    ages: Counter[int] = Counter()
    drops: Counter[str] = Counter()
    lost: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for recorded in record.read(COLUMNS):
        rows = recorded.rows
        tokens = _model_tokens(rows)
        searches = lengths(rows, "searches").tolist()
        ages.update(_ages(rows))
        dropped = rows.filter(pc.equal(rows["outcome"], Outcome.DROPPED.value)).select(["group_id", "reason"])
        drops.update(row["reason"] for row in dropped.group_by(["group_id", "reason"]).aggregate([]).to_pylist())
        plain_rows = rows.drop_columns(["segments", "versions", "searches"]).to_pylist()
        for row, own, made in zip(plain_rows, tokens, searches, strict=True):
            cell = cells[row["phase"], row["source"], row["outcome"]]
            cell.groups.add(row["group_id"])
            cell.rewards.append(row["reward"])
            cell.correct += row["correct"]
            cell.tokens.append(own)
            cell.searches += made
            cell.finishes[row["finish"]] += 1
            if row["outcome"] not in (Outcome.TRAINED, OPEN, ROLLED_BACK):
                lost[row["phase"], row["reason"]].append(own)
    return TrajectoryStats(
        {key: cell.as_dict() for key, cell in cells.items()}, dict(sorted(ages.items())), dict(drops.most_common()),
        _bias(cells, lost),
    )  # fmt: skip


def _bias(cells: dict[tuple[str, str, str], Cell], lost: dict[tuple[str, str], list[int]]) -> list[LengthBias]:
    found = []
    for phase in dict.fromkeys(phase for phase, _, _ in cells):
        trained = [
            n for (own, _, outcome), cell in cells.items() if (own, outcome) == (phase, Outcome.TRAINED) for n in cell.tokens
        ]
        by_reason = {reason: each for (own, reason), each in lost.items() if own == phase}
        every = [n for each in by_reason.values() for n in each]
        if trained:
            means = {reason: fmean(each) for reason, each in by_reason.items()}
            found.append(LengthBias(phase, fmean(trained), fmean(every) if every else None, means))
    return found


def _model_tokens(rows: pa.Table) -> list[int]:
    segments = flat(rows, "segments")
    own = np.asarray(pc.equal(segments.field("source"), Source.MODEL.value).to_numpy(zero_copy_only=False), dtype=bool)
    length = segments.field("end").to_numpy(zero_copy_only=False) - segments.field("start").to_numpy(zero_copy_only=False)
    sums = np.bincount(owners(rows, "segments"), weights=np.where(own, length, 0), minlength=rows.num_rows)
    counted: list[int] = sums.astype(np.int64).tolist()
    return counted


def _ages(rows: pa.Table) -> list[int]:
    trained = rows.filter(pc.equal(rows["outcome"], Outcome.TRAINED.value))
    trained = trained.filter(pc.greater_equal(trained["learner_number"], 0))
    if not trained.num_rows:
        return []
    number = np.asarray(flat(trained, "versions").field("number").to_numpy(zero_copy_only=False))
    oldest = np.full(trained.num_rows, np.iinfo(np.int64).max)
    np.minimum.at(oldest, owners(trained, "versions"), number)
    known = lengths(trained, "versions") > 0
    ages: list[int] = (np.asarray(trained["learner_number"].to_numpy())[known] - oldest[known]).tolist()
    return ages


def stats_table(stats: TrajectoryStats) -> Group:
    """The same for a person."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("phase", "source", "outcome"):
        table.add_column(name, no_wrap=True)
    for name in ("groups", "episodes", "reward", "correct", "tokens", "most", "searches"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended by")
    for key, cell in stats.cells.items():
        tokens = cell["response_tokens"]
        finishes = ", ".join(f"{name or '?'} {share:.0%}" for name, share in cell["finishes"].items())
        figures = [f"{cell['groups']:,}", f"{cell['episodes']:,}", f"{cell['reward']:.3f}", f"{cell['correct']:.1%}"]
        figures += [f"{tokens['mean']:.0f}", f"{tokens['most']}", f"{cell['searches']:.2f}", finishes]
        table.add_row(*(Text(plain_line(text)) for text in (*key, *figures)))
    lines = [f"age of trained episodes, in versions: {_listed(stats.ages)}", f"dropped groups: {_listed(stats.drops)}"]
    for bias in stats.bias:
        late = "all that finished were trained" if bias.not_trained is None else (
            f"not trained {bias.not_trained:.1f}, {bias.ratio:.2f} times as long ({_listed(bias.by_reason)})"
        )  # fmt: skip
        lines.append(f"length bias of {bias.phase}: trained {bias.trained:.1f} tokens; {late}")
    return Group(table, *(Text(plain_line(line)) for line in lines))


def _listed(counts: dict[Any, Any]) -> str:
    return ", ".join(f"{name}: {value:,.4g}" for name, value in counts.items()) or "none"
