"""How runs that differ in their seed alone rose from stage to stage: all their questions taken together, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medr3.evaluation.disputes import Rested
from medr3.evaluation.heldout_file import read_heldout
from medr3.evaluation.statistics import Interval, bootstrap
from medr3.json_file import read_object


@dataclass(frozen=True, slots=True)
class Stage:
    """What the policy could do after a stage; `rested` counts the answers on contradictions, None where none was met."""

    name: str
    accuracy: Interval
    by_phase: dict[str, Interval]
    rested: Rested
    on_better: Interval | None


def read_stages(runs: Sequence[Path]) -> list[Stage]:
    """The stages of finished runs of one plan, in order."""
    rows = [row for run in runs for row in read_heldout(run)]
    cells = [read_object(run / "summary.json")["heldout_by_phase"] for run in runs]
    found = []
    for name in dict.fromkeys(row.stage for row in rows):
        by_phase: dict[str, list[float]] = {}
        for row in rows:
            if row.stage == name:
                by_phase.setdefault(row.phase, []).extend(map(float, row.correct.values()))
        told = [Rested(**cell["disputes"]) for run in cells for cell in run.get(name, {}).values()]
        all_rested = Rested(*map(sum, zip(*told, strict=True))) if told else Rested(0, 0, 0)
        found.append(
            Stage(
                name=name,
                accuracy=bootstrap([right for answers in by_phase.values() for right in answers]),
                by_phase={phase: bootstrap(answers) for phase, answers in by_phase.items()},
                rested=all_rested,
                on_better=all_rested.share_on_better,
            )
        )
    return found


def stages_as_markdown(stages: Sequence[Stage]) -> str:
    """One line per stage."""
    phases = list(stages[0].by_phase)
    lines = [
        f"| after | all (95 %) | {' | '.join(phases)} | of two contradicting documents, the better |",
        "|---" * (len(phases) + 3) + "|",
    ]
    for stage in stages:
        on = "–" if stage.on_better is None else f"{stage.on_better.shown()} of {stage.rested.decided:,}"
        cells = [stage.name.replace("_", " "), stage.accuracy.shown(bold=True)]
        lines.append("| " + " | ".join([*cells, *(stage.by_phase[phase].shown() for phase in phases), on]) + " |")
    return "\n".join(lines)
