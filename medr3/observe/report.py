"""report.html: one self-contained page about one run. Nothing in it asks another machine for anything."""

from __future__ import annotations

import time
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from medr3.observe.charts import Band, Chart, Mark, Series, figure, readable
from medr3.observe.episodes import choose_episodes, episode_html
from medr3.observe.record import ENDINGS, RunRecord, load_record, wilson
from trajectories.events import EventKind

SMOOTHING = 5  # steps of the trailing mean: about one probe period of the demo, so a curve is not smoothed across a phase

# Curves below the fold: title, unit, {legend: metric}. A chart whose metrics were never logged is left out.
DETAIL_CHARTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Throughput", "model tokens per second of wall time", {"tokens/s": "rollout/tokens_per_s"}),
    (
        "Engine against learner",
        "|Δ log-probability|, nats",
        {"mean": "learner/mismatch_mean", "largest": "learner/mismatch_max"},
    ),
    ("Age of trained tokens", "weight versions", {"oldest": "learner/age_max", "mean": "learner/age_mean"}),
    ("Entropy", "nats per token", {"entropy": "learner/entropy"}),
    ("Response length", "model tokens per episode", {"tokens": "rollout/response_tokens"}),
    ("Searches", "per episode", {"searches": "rollout/searches"}),
    ("Gradient norm", "before clipping", {"norm": "learner/grad_norm"}),
)


def write_report(run_folder: Path) -> Path:
    """Writes report.html into the run folder from what the run has left there so far."""
    record = load_record(run_folder)
    phases = list(dict.fromkeys(phase.name for phase in record.phases))
    episodes = [episode_html(row) for row in choose_episodes(run_folder, phases)]
    template = Template(files("medr3.observe").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        name=escape(record.name),
        state=_state(record),
        tiles=_tiles(record),
        reward=figure(_reward_chart(record)),
        heldout=figure(_heldout_chart(record)),
        reasons=_reasons(record),
        accuracy=_accuracy_table(record),
        details="".join(figure(chart) for chart in _detail_charts(record)),
        outcomes=_outcomes(record),
        stages=_stages(record),
        episodes="".join(episodes) or "<p>No stored episodes yet.</p>",
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
    path = run_folder / "report.html"
    draft = path.with_suffix(".draft")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def _bands(record: RunRecord) -> list[Band]:
    return [Band(phase.start, phase.end, phase.name) for phase in record.phases]


def _reward_chart(record: RunRecord) -> Chart:
    raw = record.curve("reward/mean")
    return Chart(
        "Training reward",
        "mean per episode",
        [Series("each step", raw, faint=True), Series(f"mean of {SMOOTHING} steps", _smooth(record, raw))],
        bands=_bands(record),
    )


def _smooth(record: RunRecord, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Trailing mean that starts anew with each phase, because each phase pays a reward of its own."""
    smoothed: list[tuple[float, float]] = []
    starts = {phase.start for phase in record.phases}
    window: list[float] = []
    for step, value in points:
        window = [value] if step - 1 in starts else [*window, value][-SMOOTHING:]
        smoothed.append((step, sum(window) / len(window)))
    return smoothed


def _heldout_chart(record: RunRecord) -> Chart:
    """One curve per stay in a phase: each phase is probed with questions of its own."""
    series = []
    for i, phase in enumerate(record.phases):
        probes = [probe for probe in record.probes if probe.phase == phase.name and phase.start <= probe.step <= phase.end]
        points = [(float(probe.step), probe.score) for probe in probes]
        series.append(Series(phase.name, points, colour=i % 3, whiskers=[probe.interval for probe in probes], dots=True))
    marks = [Mark(phase.end, str(i)) for i, phase in enumerate(record.phases, start=1) if phase.left_by]
    return Chart("Held-out accuracy", "greedy, with 95 % intervals", series, _bands(record), marks, top=1.0)


def _reasons(record: RunRecord) -> str:
    items = "".join(
        f"<li><b>{escape(phase.name)}</b> left at step {phase.end} by {escape(phase.left_by)}"
        f"{': ' if phase.reason else ''}{escape(phase.reason)}</li>"
        for phase in record.phases
        if phase.left_by
    )
    return f'<ol class="reasons">{items}</ol>' if items else ""


def _detail_charts(record: RunRecord) -> list[Chart]:
    return [
        Chart(
            title, unit, [Series(legend, record.curve(metric), colour=i) for i, (legend, metric) in enumerate(metrics.items())]
        )
        for title, unit, metrics in DETAIL_CHARTS
    ]


def _state(record: RunRecord) -> str:
    """The one sentence at the top: what became of the run."""
    kind = record.last_event.kind if record.last_event else None
    reason = str(record.last_event.fields.get("reason", "")) if record.last_event else ""
    last = record.metrics[-1]["step"] if record.metrics else 0
    if kind is EventKind.FAILED:
        return f'<span class="pill wrong">failed</span> at step {last}. {escape(reason)}'
    if kind is EventKind.STOPPED:
        return f'<span class="pill right">ended</span> after {last} steps. {escape(reason)}'
    return f'<span class="pill">going on</span> at step {last}'


def _tiles(record: RunRecord) -> str:
    summary = record.summary
    heldout = list(summary.get("heldout", {}).values())
    tiles: list[tuple[str, str]] = []
    if heldout:
        tiles.append(("held-out accuracy, first to last", f"{heldout[0]:.3f} → {heldout[-1]:.3f}"))
    if "wall_s" in summary:
        tiles.append(("wall time", f"{summary['wall_s'] / 60:.1f} min"))
    if "tokens_per_s" in summary:
        tiles.append(("model tokens per second", f"{summary['tokens_per_s']:,.0f}"))
    if "max_age" in summary:
        tiles.append(("oldest trained token", f"{summary['max_age']} versions"))
    if "seed" in summary:
        tiles.append(("seed", str(summary["seed"])))
    return "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in tiles)


def _accuracy_table(record: RunRecord) -> str:
    """Rows: when it was measured. Columns: whose questions. Below each figure the same questions without retrieval."""
    table: dict[str, dict[str, dict[str, Any]]] = record.summary.get("heldout_by_phase", {})
    if not table:
        return "<p>Measured when the run ends.</p>"
    columns = list(dict.fromkeys(phase for row in table.values() for phase in row))
    overall: dict[str, float] = record.summary.get("heldout", {})
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(stage.replace("_", " "))}</th><td><b>{_share(overall.get(stage))}</b></td>'
        f"{''.join(_cell(row.get(column)) for column in columns)}</tr>"
        for stage, row in table.items()
    )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">after</th><th scope="col">all questions</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cell(cell: dict[str, Any] | None) -> str:
    if not cell:
        return "<td>–</td>"
    accuracy, n = cell["accuracy"], cell.get("n", 0)
    low, high = wilson(accuracy, n)
    interval = f' <span class="unit">{low:.2f}–{high:.2f}</span>' if n else ""
    without = cell.get("without_retrieval")
    below = f"<br><small>{without:.3f} without retrieval</small>" if without is not None else ""
    return f"<td><b>{accuracy:.3f}</b>{interval}{below}</td>"


def _outcomes(record: RunRecord) -> str:
    """How every admitted group ended, and why those that were not trained were not."""
    counted: dict[str, int] = dict(record.summary.get("groups", {}))
    for kind in ENDINGS:
        counted.setdefault(kind, sum(count for (ended, _), count in record.endings.items() if ended == kind))
    total = sum(counted[kind] for kind in ENDINGS)
    if not total:
        return "<p>No group has ended yet.</p>"
    bar = "".join(f'<span class="{kind}" style="flex-grow:{counted[kind]}"></span>' for kind in ENDINGS if counted[kind])
    legend = "".join(f'<li class="{kind}">{counted[kind]:,} {kind}</li>' for kind in ENDINGS)
    why = [
        (kind, reason, count)
        for (kind, reason), count in record.endings.most_common()
        if reason and kind is not EventKind.TRAINED
    ]
    rows = "".join(f"<tr><td>{kind}</td><td>{escape(reason)}</td><td>{count:,}</td></tr>" for kind, reason, count in why)
    reasons = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    admitted = f"<p>{counted['admitted']:,} groups were admitted.</p>" if "admitted" in counted else ""
    return f'{admitted}<div class="bar" aria-hidden="true">{bar}</div><ul class="legend bars">{legend}</ul>{reasons}'


def _stages(record: RunRecord) -> str:
    """Where the wall time went."""
    seconds: dict[str, float] = record.summary.get("time_by_stage", {})
    longest = max(seconds.values(), default=0.0)
    if longest <= 0:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(stage.replace("_", " "))}</th><td>{readable(value)} s</td>'
        f'<td class="meter"><span style="width:{100 * value / longest:.1f}%"></span></td></tr>'
        for stage, value in sorted(seconds.items(), key=lambda item: -item[1])
    )
    return f"<h2>Where the time went</h2><table>{rows}</table>"
