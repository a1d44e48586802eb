"""What a person sees below the lines of `medr3 train` while it runs: where the run is, how it learns, how fast, on what.

The lines above stay what they are in a pipe or a log file; where there is no terminal, there is nothing else.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

REFRESHES_A_SECOND = 2  # seconds tick visibly, and a slow connection is not kept busy
KEPT = 240  # points of a curve: more than the widest one has columns
BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-~=+*#"
WIDEST_CURVE = 48
LABEL = 9  # columns of the names on the left
NARROW = 60  # columns below which only what fits into one short line each is said
STYLES = {"healthy": "green", "suspect": "yellow", "dead": "red"}


def sparkline(values: Iterable[float], width: int, marks: str = BLOCKS) -> str:
    """The last values as columns, each the mean of as many as it has room for; the lowest and the highest fill the height.

    Example:
        >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)
        '▁▂▃▄▅▆▇█'
        >>> sparkline([0, 0, 1, 1], 2), sparkline([0.5, 0.5], 8), sparkline([], 8)
        ('▁█', '▄▄', '')
    """
    kept = list(values)
    size = -(-len(kept) // width) if width > 0 else 0
    if not kept or not size:
        return ""
    means = [sum(part) / len(part) for part in (kept[i : i + size] for i in range(0, len(kept), size))]
    low, high = min(means), max(means)
    if high == low:
        return marks[len(marks) // 2 - 1] * len(means)
    return "".join(marks[round((value - low) / (high - low) * (len(marks) - 1))] for value in means)


@dataclass
class Standing:
    """What the panel tells of; `told` takes what a run writes into status.json."""

    run: str
    limits: Mapping[str, int] = field(default_factory=dict)  # phase → its most steps
    fields: dict[str, Any] = field(default_factory=dict)
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    heldout: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    entered_at: int = 0
    _probed_at: int = -1

    def told(self, fields: Mapping[str, Any], probe: Mapping[str, float] | None, entered_at: int) -> None:
        if fields.get("phase") != self.fields.get("phase"):
            self.rewards.clear()  # each phase pays a reward of its own, and is probed with questions of its own
            self.heldout.clear()
        if "reward" in fields:
            self.rewards.append(float(fields["reward"]))
        if probe is not None and probe["step"] != self._probed_at:
            self._probed_at = int(probe["step"])
            self.heldout.append(float(probe["score"]))
        self.fields = dict(fields)
        if entered_at < fields.get("step", 0):  # what is told at a phase's last step knows of the next one's beginning already
            self.entered_at = entered_at

    def lines(self, width: int, stage: str, stage_s: float, marks: str = BLOCKS) -> list[Text]:
        """For a terminal so wide; what is not known yet is left out."""
        found = [self._where(width, stage, stage_s, "-" if marks is ASCII else "·")]
        curve = min(WIDEST_CURVE, max(8, width - LABEL - 10))
        for name, values in (("reward", self.rewards), ("held-out", self.heldout)):
            if values:
                found.append(_line(name, f"{values[-1]:.3f} ", Text(sparkline(values, curve, marks), "cyan")))
        if speed := self._speed(width):
            found.append(_line("speed", speed))
        if "engines" in self.fields:
            found.append(_line("engines", *self._engines(width)))
        for line in found:
            line.truncate(width, overflow="ellipsis" if marks is BLOCKS else "crop")
        return found

    def _where(self, width: int, stage: str, stage_s: float, dot: str) -> Text:
        phase, step = self.fields.get("phase", ""), self.fields.get("step", 0)
        text = Text(self.run, "bold")
        if phase:
            most = self.limits.get(phase)
            of = f" of at most {most}" if most and width >= NARROW else ""
            text.append(f" {dot} {phase} {step - self.entered_at}{of}", "not bold")
        if step:
            text.append(f" {dot} step {step}", "not bold")
        return text.append(f" {dot} {stage} {_clock(stage_s)}", "dim not bold")

    def _speed(self, width: int) -> str:
        parts = []
        if "tokens_per_s" in self.fields:
            parts.append(f"{self.fields['tokens_per_s']:,.0f} tokens/s")
        if "step_s" in self.fields:
            parts.append(f"{self.fields['step_s']:.3g} s a step")
        if self.fields.get("eta_s") and width >= NARROW:
            parts.append(f"at most {_clock(self.fields['eta_s'])} to go")
        return ", ".join(parts)

    def _engines(self, width: int) -> list[str | Text]:
        states = Counter(self.fields["engines"].values())
        parts: list[str | Text] = []
        for state, count in sorted(states.items(), key=lambda item: item[0] != "healthy"):
            parts += [", " if parts else "", Text(f"{count} {state}", STYLES.get(state, ""))]
        wanted = self.fields.get("pool_target")
        if wanted is not None and wanted != len(self.fields["engines"]):
            parts.append(f", {wanted} wanted")
        if self.fields.get("last_checkpoint") and width >= NARROW:
            parts.append(f"; checkpoint of step {self.fields['last_checkpoint']}")
        return parts or ["none"]


def _line(name: str, *parts: str | Text) -> Text:
    return Text.assemble((f"{name:<{LABEL}}", "dim"), *parts)


def _clock(seconds: float) -> str:
    """
    Example:
        >>> _clock(7.4), _clock(400), _clock(9000)
        ('7 s', '6:40', '2:30:00')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Terminal:
    """Keeps the panel at the bottom of the terminal from `open` to `close`; what is printed meanwhile goes above it.

    `stage` names what the run's main loop is doing now.
    """

    def __init__(self, standing: Standing, stage: Callable[[], str], console: Console | None = None) -> None:
        self._standing, self._stage = standing, stage
        self._last, self._since = "", time.monotonic()
        self._console = console or Console(highlight=False)
        self._live = Live(self, console=self._console, refresh_per_second=REFRESHES_A_SECOND, transient=True)

    @classmethod
    def opened(cls, run: str, limits: Mapping[str, int], stage: Callable[[], str]) -> Terminal | None:
        """None where stdout is no terminal that can move its cursor."""
        console = Console(highlight=False)
        if not sys.stdout.isatty() or not console.is_terminal or console.is_dumb_terminal:
            return None
        terminal = cls(Standing(run, limits), stage, console)
        terminal._live.start()
        return terminal

    def told(self, fields: Mapping[str, Any], probe: Mapping[str, float] | None, entered_at: int) -> None:
        self._standing.told(fields, probe, entered_at)

    def close(self) -> None:
        """The panel goes, the lines stay; safe to call twice."""
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stage = self._stage()
        if stage != self._last:
            self._last, self._since = stage, time.monotonic()
        marks = ASCII if options.ascii_only else BLOCKS
        width = options.max_width
        yield Text(("-" if options.ascii_only else "─") * width, "dim", overflow="crop", no_wrap=True)
        for line in self._standing.lines(width, stage, time.monotonic() - self._since, marks):
            line.no_wrap = True
            yield line
