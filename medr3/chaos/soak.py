"""Does anything pile up while a run trains? Memory, descriptors, shared memory and step time over half an hour, with a verdict.

::

    one run, whose work stays the same (its learning rate is next to nothing) ─ samples of every process ─▶ slopes ─▶ flat or not
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medr3.chaos.conductor import Conductor, RunFailed
from medr3.chaos.plan import Plan
from medr3.chaos.processes import OTHER, Sample
from medr3.chaos.runner import clean_folder, frozen, scene_of
from medr3.run.manifest import write_json
from medr3.run.services import unique_name

WARM_UP = 0.25  # share of the time in which caches fill and allocators find their size
# Of the level, over the whole time measured: what sampling noise of a flat curve stays below.
GROWTH = 0.05
# What is never called growth, whatever the level: Python's and glibc's pools grow in steps of megabytes; sockets come and go.
SPARE = {"own_mib": 16.0, "shared_mib": 16.0, "descriptors": 8.0, "step_s": 0.1, "published_mib": 1.0}
WHAT = {
    "own_mib": "own memory, MiB", "shared_mib": "shared memory, MiB", "descriptors": "descriptors", "step_s": "step time, s",
    "published_mib": "weights in shared memory, MiB",
}  # fmt: skip
LOOK_S = 5.0


@dataclass(frozen=True)
class Trend:
    """One curve: its level, and by how much its slope raises it over the time that was measured."""

    of: str
    what: str
    level: float
    growth: float
    minutes: float
    flat: bool


def trend(of: str, what: str, points: Sequence[tuple[float, float]]) -> Trend:
    """By the median of the slopes between all pairs of points (Theil–Sen), which single spikes do not move.

    Example:
        >>> trend("driver", "own_mib", [(60.0 * i, 100 + i) for i in range(60)]).flat  # a megabyte a minute
        False
        >>> trend("driver", "own_mib", [(60.0 * i, 100 + i % 2) for i in range(60)]).flat
        True
    """
    x, y = np.asarray([point[0] for point in points]), np.asarray([point[1] for point in points])
    before, after = np.triu_indices(len(x), k=1)
    apart = x[after] > x[before]
    slope = float(np.median((y[after] - y[before])[apart] / (x[after] - x[before])[apart]))
    seconds, level = float(x[-1] - x[0]), float(np.median(y))
    growth = slope * seconds
    return Trend(of, what, level, growth, seconds / 60, growth <= max(GROWTH * level, SPARE[what]))


def trends_of(
    samples: Sequence[Sample], steps: Sequence[tuple[float, float]], published: Sequence[tuple[float, float]]
) -> list[Trend]:
    """Of every process that lived through the whole time, of step time, and of the weights in shared memory."""
    begin, end = min(each.at for each in samples), max(each.at for each in samples)
    warm = begin + WARM_UP * (end - begin)
    by_process: dict[int, list[Sample]] = defaultdict(list)
    for each in samples:
        if each.at >= warm and each.role != OTHER:
            by_process[each.pid].append(each)
    found = []
    for pid, own in sorted(by_process.items()):
        if (
            len(own) > 1 and own[0].at - warm < 3 * LOOK_S and end - own[-1].at < 3 * LOOK_S
        ):  # those that came later are replacements
            held = {
                what: _thinned([(each.at, getattr(each, what)) for each in own])
                for what in ("own_mib", "shared_mib", "descriptors")
            }
            found += [trend(f"{own[-1].role} {pid}", what, points) for what, points in held.items()]
    for what, points in (("step_s", steps), ("published_mib", published)):
        late = _thinned([(at, value) for at, value in points if at >= warm])
        if len(late) > 1:
            found.append(trend("run", what, late))
    return found


def _thinned(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """All pairs of 400 points are 80,000 slopes."""
    return points[:: max(1, len(points) // most)]


def soak(plan: Plan, minutes: float, seed: int, out: Path, say: Callable[[str], None]) -> tuple[str, bool]:
    """Trains the plan's first run for so long, stops it as a person would, and judges; the closing words, and whether all is flat."""
    plan, run = frozen(plan, out), plan.runs[0]
    folder = (out / run.name).resolve()
    with clean_folder(folder, None):
        scene = scene_of(plan, run, seed, folder, None)
        conductor = Conductor(scene, say)
        published: list[tuple[float, float]] = []
        weights = Path("/dev/shm") / f"medr3-{unique_name(folder.name, folder)}"

        def over(until: float) -> bool:
            published.append((time.time(), _mib(weights)))
            return time.time() >= until

        try:
            with scene.watcher:
                conductor.begin()
                scene.watcher.samples.clear()  # of the start, which no slope is asked of
                began = time.time()
                while not over(began + 60 * minutes):
                    conductor.watch_for(LOOK_S)
                conductor.stop()
        except RunFailed as error:
            return f"the run failed: {error}", False
        finally:
            scene.end()
    samples = [each for each in scene.watcher.samples if began <= each.at <= began + 60 * minutes]
    trends = trends_of(samples, _steps(folder, began), [point for point in published if point[0] >= began])
    flat = all(each.flat for each in trends) and scene.starts == 1  # a driver that ended in between took its slopes with it
    write_json(out / "soak.json", {"minutes": minutes, "seed": seed, "flat": flat, "trends": [asdict(each) for each in trends]})
    page = as_markdown(trends, minutes)
    (out / "soak.md").write_text(page, encoding="utf-8")
    return page, flat


def as_markdown(trends: Sequence[Trend], minutes: float) -> str:
    what = (
        f"The first {WARM_UP:.0%} is warm-up. Growth is the median slope times the time measured; flat is below {GROWTH:.0%} of the level,"
        " or below what pools and sockets vary by."
    )
    lines = [f"# Soak of {minutes:g} minutes", "", what, ""]
    lines += ["| of | what | level | growth | over, min | verdict |", "|---|---|---|---|---|---|"]
    for each in trends:
        verdict = "flat" if each.flat else "**grows**"
        lines.append(
            f"| {each.of} | {WHAT[each.what]} | {each.level:.1f} | {each.growth:+.2f} | {each.minutes:.1f} | {verdict} |"
        )
    return "\n".join([*lines, ""])


def _steps(folder: Path, began: float) -> list[tuple[float, float]]:
    """When each step ended, and how long it took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["time"], row["time/step"]) for row in rows if "time/step" in row and row["time"] >= began]


def _mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) / 2**20 if folder.exists() else 0.0
