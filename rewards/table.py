"""What every component is worth over the episodes of a finished run, by phase and source: rows in, a table out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rewards.findings import NO_FINDINGS
from rewards.registry import COMPONENTS
from tasks.config import WorldConfig
from tasks.questions import Question
from tasks.world import SOURCES, Universe
from trajectories.schema import Episode, RewardPart, Search, Segment, TurnReward, VersionSpan
from trajectories.store import iterate


class Cell(NamedTuple):
    """One component over the episodes of one phase and source."""

    phase: str
    source: str
    component: str
    episodes: int
    mean: float
    lowest: float
    highest: float
    nonzero: float  # share of the episodes where it is not 0


def episode_of(row: dict[str, Any]) -> Episode:
    """The episode of a stored row, without how it ended in the ledger."""
    fields = {name: row[name] for name in Episode.__dataclass_fields__}
    for name, kind in _NESTED.items():
        fields[name] = [kind(**each) for each in fields[name]]
    return Episode(**fields)


_NESTED: dict[str, Callable[..., object]] = {
    "segments": Segment, "versions": VersionSpan, "searches": Search, "rewards": RewardPart, "turn_rewards": TurnReward,
}  # fmt: skip


def stored_episodes(run: Path) -> Iterator[tuple[Question, Episode]]:
    """The episodes of a run on the medical world, each with its question made anew from the run's seeds."""
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    universe = Universe.build(WorldConfig.model_validate(settings["world"]), settings["run"]["seed"])
    questions: dict[str, Question] = {}
    for _, table in iterate(run / "trajectories"):
        for row in table.to_pylist():
            if row["source"] in SOURCES:
                name = row["question_id"]
                question = questions.get(name) or questions.setdefault(name, universe.question(name))
                yield question, episode_of(row)


def component_table(run: Path, components: Sequence[str] = ()) -> list[Cell]:
    """The named components, by default all, with their default arguments and nothing but rules, over a run's stored episodes."""
    values: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for question, episode in stored_episodes(run):
        for name in components or COMPONENTS:
            earned = COMPONENTS[name].compute(question, episode, NO_FINDINGS)
            values[episode.phase, episode.source, name].append(earned.value)
    return [
        Cell(*key, len(each), fmean(each), min(each), max(each), sum(value != 0 for value in each) / len(each))
        for key, each in values.items()
    ]


def as_markdown(cells: Sequence[Cell]) -> str:
    """One line for each component, one column of means for each phase and source."""
    columns = list(dict.fromkeys((cell.phase, cell.source) for cell in cells))
    found = {(cell.component, (cell.phase, cell.source)): cell for cell in cells}
    episodes = {(cell.phase, cell.source): cell.episodes for cell in cells}
    lines = [
        "| component | " + " | ".join(f"{phase}, {source} ({episodes[phase, source]})" for phase, source in columns) + " |"
    ]
    lines.append("|---|" + "---:|" * len(columns))
    for name in dict.fromkeys(cell.component for cell in cells):
        means = [f"{found[name, column].mean:.3f}" if (name, column) in found else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(means) + " |")
    return "\n".join(lines)
