"""The table and the figure of an ablation, from the run folders of its arms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medr3.evaluation.ablation import Arm
from medr3.evaluation.heldout_file import HeldOut, read_heldout
from medr3.evaluation.statistics import Interval, Paired, bootstrap, paired_bootstrap
from medr3.run_shapes import read_summary

Answers = dict[tuple[int, str, str], float]  # (seed, phase, question) → 1 where the answer was right


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What an arm reached, over all seeds and all held-out questions together, and by phase."""

    name: str
    about: str
    accuracy: Interval
    by_phase: dict[str, float]
    by_seed: dict[int, float]
    model_tokens: float  # per seed
    steps: dict[int, list[str]]  # by seed, each phase with its steps and what ended it
    against_first: Paired | None


def compare_arms(out: Path, arms: Sequence[Arm], seeds: Sequence[int]) -> list[ArmResult]:
    """Every arm beside the first. Questions are paired: a seed asks all of its arms the same ones."""
    first: Answers = {}
    results: list[ArmResult] = []
    for arm in arms:
        folders = {seed: out / arm.folder / f"seed-{seed}" for seed in seeds}
        answers = {key: value for seed, folder in folders.items() for key, value in _final(seed, folder).items()}
        first = first or answers
        if answers.keys() != first.keys():
            raise ValueError(f"{out / arm.folder}: was asked other questions than {arms[0].name!r}: run it again")
        summaries = {seed: read_summary(folder) for seed, folder in folders.items()}
        keys = sorted(first)
        results.append(
            ArmResult(
                name=arm.name,
                about=arm.about,
                accuracy=bootstrap([answers[key] for key in keys]),
                by_phase={phase: _mean(answers, phase=phase) for phase in dict.fromkeys(phase for _, phase, _ in first)},
                by_seed={seed: _mean(answers, seed=seed) for seed in seeds},
                model_tokens=sum(summary["model_tokens"] for summary in summaries.values()) / len(summaries),
                steps={seed: [_phase(phase) for phase in summary["phases"]] for seed, summary in summaries.items()},
                against_first=None
                if answers is first
                else paired_bootstrap([first[key] for key in keys], [answers[key] for key in keys]),
            )
        )
    return results


def _final(seed: int, folder: Path) -> Answers:
    """The answers after the last stage of a run."""
    rows: list[HeldOut] = read_heldout(folder)
    last = rows[-1].stage
    return {
        (seed, row.phase, question): float(right)
        for row in rows
        if row.stage == last
        for question, right in row.correct.items()
    }


def _mean(answers: Answers, *, seed: int | None = None, phase: str | None = None) -> float:
    chosen = [value for key, value in answers.items() if seed in (None, key[0]) and phase in (None, key[1])]
    return sum(chosen) / len(chosen)


def _phase(left: dict[str, Any]) -> str:
    return f"{left['name']} {left['steps']} ({left['left_by']})"


def as_markdown(results: Sequence[ArmResult]) -> str:
    """The table that a person reads: every arm with its interval, and its difference to the first arm."""
    phases = list(results[0].by_phase)
    seeds = list(results[0].by_seed)
    head = [
        "arm",
        "held-out accuracy (95 %)",
        "against the first (95 %, p)",
        *phases,
        *(f"seed {seed}" for seed in seeds),
        "tokens",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        cells = [result.name, result.accuracy.shown(bold=True), _difference(result.against_first)]
        cells += [f"{result.by_phase[phase]:.3f}" for phase in phases]
        cells += [f"{result.by_seed[seed]:.3f}" for seed in seeds]
        cells.append(f"{result.model_tokens / 1000:,.0f}k")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(paired: Paired | None) -> str:
    if paired is None:
        return ""
    return paired.difference.shown(signed=True, beside=f", p {paired.p:.2g}")


def as_json(results: Sequence[ArmResult]) -> str:
    return json.dumps([asdict(result) for result in results], indent=1)


def as_svg(results: Sequence[ArmResult]) -> str:
    """Bars with intervals and a dot per seed; colours are said in the file, so that it stands alone in a page of docs."""
    row, left, width = 30, 190, 720
    scale = width - left - 60

    def x(share: float) -> float:
        return left + share * scale

    height = row * len(results) + 40
    drawn = [f'<line class="g" x1="{x(i / 4):.1f}" x2="{x(i / 4):.1f}" y1="8" y2="{height - 26}"/>' for i in range(5)]
    drawn += [f'<text x="{x(i / 4):.1f}" y="{height - 10}" text-anchor="middle">{i / 4:g}</text>' for i in range(5)]
    for i, result in enumerate(results):
        y = 22 + i * row
        interval = result.accuracy
        drawn.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{result.name}</text>')
        drawn.append(f'<rect class="b" x="{left}" y="{y - 8}" width="{interval.mean * scale:.1f}" height="16"/>')
        drawn.append(f'<line class="w" x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}" y1="{y}" y2="{y}"/>')
        drawn += [f'<circle cx="{x(share):.1f}" cy="{y}" r="3"/>' for share in result.by_seed.values()]
        drawn.append(
            f'<text x="{x(max(interval.high, *result.by_seed.values())) + 8:.1f}" y="{y + 4}">{interval.mean:.3f}</text>'
        )
    style = (
        "text{font:12px sans-serif;fill:#444}.g{stroke:#ddd}.b{fill:#9cc3e6}.w{stroke:#1f4e79;stroke-width:2}circle{fill:#1f4e79}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}.g{stroke:#444}.b{fill:#2b5c8a}.w{stroke:#cfe3f7}circle{fill:#cfe3f7}}"
    )
    label = "held-out accuracy by arm, with 95 % intervals and one dot per seed"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"<style>{style}</style>{''.join(drawn)}</svg>\n"
    )
