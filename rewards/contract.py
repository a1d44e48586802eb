"""What a reward must keep to, as a check that its author runs: in a test of their own, or as `medr3 rewards check`.

```python
from rewards.contract import check_reward

def test_my_reward():
    verdict = check_reward("my_package.rewards:brevity", low=0.0, high=1.0)
    assert verdict.ok, verdict
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.config import OWN_REWARD, RewardTerm
from rewards.earned import Earned
from rewards.findings import NO_FINDINGS
from rewards.isolation import RewardFailed, RewardProcess, as_json
from rewards.specimens import Specimen, hostile, ordinary

SLOWEST_S = 0.5  # for one episode, the longest hostile one included: a step scores hundreds of them
SHOWN = 3  # problems of one sort: more of the same help nobody
MOST_DEATHS = 3  # of processes in a round: what ends or hangs this often need not be asked for the rest
TURNS_TOLERANCE = 1e-6  # between a value and the sum of its turns' shares


@dataclass(frozen=True)
class Verdict:
    """What was checked, a line each, and what was found wrong, a line each."""

    reward: str
    checked: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        lines = [f"{self.reward}: {'keeps the contract' if self.ok else 'breaks the contract'}"]
        return "\n".join(lines + [f"  ok     {line}" for line in self.checked] + [f"  WRONG  {line}" for line in self.wrong])


@dataclass
class _Round:
    """What one fresh process gave for all specimens."""

    earned: dict[str, Earned] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")


def check_reward(
    reward: str | Callable[..., Any],
    *,
    style: Literal["medr3", "verl"] = "medr3",
    arguments: Mapping[str, Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    seconds: float = SLOWEST_S,
) -> Verdict:
    """Runs a reward as a run would, in a process that can be killed, on ordinary and on hostile episodes.

    It must never raise, hang or end its process; give finite numbers, within `low` … `high` where they are named; give the same
    for the same episode, in another order and in another process; take less than `seconds` for each; and where it names turns,
    their shares must add up to the value.
    """
    path = reward if isinstance(reward, str) else f"{reward.__module__}:{reward.__qualname__}"
    if not OWN_REWARD.fullmatch(path):
        return Verdict(path, (), ("is no function at the top level of a module: write package.module:function",))
    term = RewardTerm(name=path, style=style, arguments=dict(arguments or {}), deadline_s=max(1.0, 2 * seconds))
    specimens = [*ordinary(), *hostile()]
    try:
        first, second = _round(term, specimens), _round(term, specimens[::-1])
    except RewardFailed as error:  # the function itself could not be had
        return Verdict(path, (), (str(error),))
    checked, wrong = [f"tried on {len(specimens)} episodes, of which {len(hostile())} are hostile"], []
    for problems, fine in (
        (_failures(first), "gave a finite number for each"),
        (_differences(first, second), "gave the same again, in another order and another process"),
        (_outside(first, low, high), f"values lie in {_span(first)}"),
        (_torn(first), "shares of turns add up to the value"),
        (_late(first, second, seconds), f"took {first.slowest[0] * 1000:.1f} ms at most ({first.slowest[1]})"),
    ):
        wrong += problems[:SHOWN] + [f"… and {len(problems) - SHOWN} more like these"] * (len(problems) > SHOWN)
        checked += [fine] if first.earned and not problems else []
    return Verdict(path, tuple(checked), tuple(wrong))


def _round(term: RewardTerm, specimens: list[Specimen]) -> _Round:
    found, process, deaths = _Round(), RewardProcess(), 0
    try:
        process.load(term)
        for specimen in specimens:
            sample = as_json(specimen.question, specimen.episode, NO_FINDINGS)
            started = time.perf_counter()
            try:
                found.earned[specimen.name] = process.ask(term, sample)
            except RewardFailed as error:
                found.failed[specimen.name] = str(error)
                deaths += process.pid is None
                if deaths == MOST_DEATHS:
                    break
                process.load(term)  # a new process, if this one was killed: starting it is nobody's slowness
            else:
                found.slowest = max(found.slowest, (time.perf_counter() - started, specimen.name))
    finally:
        process.kill()
    return found


def _failures(found: _Round) -> list[str]:
    return [f"{name}: {reason}" for name, reason in found.failed.items()]


def _differences(first: _Round, second: _Round) -> list[str]:
    names = [name for name in first.earned if name in second.earned and first.earned[name] != second.earned[name]]
    return [
        f"{name}: gave {first.earned[name].value:g}, then {second.earned[name].value:g} in another process and order"
        for name in names
    ]


def _outside(found: _Round, low: float | None, high: float | None) -> list[str]:
    return [
        f"{name}: gave {earned.value:g}, outside {'-∞' if low is None else f'{low:g}'} … {'∞' if high is None else f'{high:g}'}"
        for name, earned in found.earned.items()
        if (low is not None and earned.value < low) or (high is not None and earned.value > high)
    ]


def _torn(found: _Round) -> list[str]:
    return [
        f"{name}: the turns' shares add up to {sum(earned.turns.values()):g}, the value is {earned.value:g}"
        for name, earned in found.earned.items()
        if earned.turns and abs(sum(earned.turns.values()) - earned.value) > TURNS_TOLERANCE
    ]


def _late(first: _Round, second: _Round, seconds: float) -> list[str]:
    took, name = min(first.slowest, second.slowest)  # the better of two: another program may have had the processor
    return [f"{name}: took {took:.2f} s, more than {seconds:g} s"] if took > seconds else []


def _span(found: _Round) -> str:
    values = [earned.value for earned in found.earned.values()]
    return f"{min(values):g} … {max(values):g}" if values else "no range: there are none"
