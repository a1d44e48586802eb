"""A plan of faults as data: which runs are made, what is done to them and when. A seed turns it into a schedule.

::

    configs/chaos/*.yaml ─ read_plan ─▶ Plan ─ schedule(seed) ─▶ runs with faults, each with its delay and its choice of target
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medr3.errors import UserError, did_you_mean
from security.yaml_files import read_yaml

# By default a fault comes so long after the run recovered from the one before: from the middle of a step to a few steps later.
DELAY_S = (0.2, 4.0)
KILLS = "kills"
MOST_DRAWN = 1_000  # faults of one run: at a minute each they take most of a day
Seconds = Annotated[float, Field(ge=0, le=86_400)]
STARTED = "started"  # no event of the run's own: its driver was started


class FaultPlan(BaseModel):
    """One fault, and when: once the run trains, in a phase, after an event, and then after a time that the seed draws."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    step: int | None = Field(default=None, ge=0, description="not before this step was trained")
    phase: str | None = Field(default=None, description="not before this phase was entered")
    after_event: str | None = Field(
        default=None, description="right after the next such event, as checkpoint; started: the driver"
    )
    delay_s: tuple[Seconds, Seconds] = DELAY_S
    seconds: Seconds | None = Field(default=None, gt=0, description="of those faults that last; none: as the kind has it")
    settle: bool = Field(default=True, description="false: the next one does not wait until the run has recovered")


class RunPlan(BaseModel):
    """One run with its faults, in this order. `draw` adds so many more, of `kinds`, as the seed chooses."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    about: str = ""
    overrides: list[str] = []
    environment: dict[str, str] = Field(
        default={}, description="of the driver; {start} becomes the number of its start, {folder} the run's own folder"
    )
    nodes: int = Field(
        default=0, ge=0, le=4, description="a cluster of a head and so many nodes with engines; 0: a Ray of its own"
    )
    disk_mib: int | None = Field(default=None, ge=16, description="the run's folder is a disk of this size; needs root")
    faults: list[FaultPlan] = []
    draw: int = Field(default=0, ge=0, le=MOST_DRAWN)
    kinds: list[str] = []
    stops: bool = Field(
        default=False, description="after its last fault the run is asked to pause, as SIGTERM does; false: it ends"
    )
    same_decisions: bool = Field(default=True, description="the curriculum decides as in the undisturbed twin")

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, raw: object) -> object:
        """A fault may be written as its kind alone."""
        if isinstance(raw, dict) and isinstance(raw.get("faults"), list):
            raw = raw | {"faults": [{"kind": each} if isinstance(each, str) else each for each in raw["faults"]]}
        return raw

    @model_validator(mode="after")
    def _something_to_draw(self) -> RunPlan:
        if self.draw and not self.kinds:
            raise ValueError(f"run {self.name}: draws {self.draw} faults, but lists no kinds")
        return self


class Plan(BaseModel):
    """A suite of runs over one configuration. The first run is the twin: the same one, undisturbed."""

    model_config = ConfigDict(extra="forbid")

    about: str = ""
    config: Path = Path("configs/demo.yaml")
    overrides: list[str] = []
    runs: list[RunPlan] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Plan:
        names = [run.name for run in self.runs]
        if double := [name for name in names if names.count(name) > 1 or name == "twin"]:
            raise ValueError(f"run {double[0]!r}: each run needs a name of its own, and twin is taken by the undisturbed one")
        return self


@dataclass(frozen=True)
class Scheduled:
    """One fault as the seed has it. `pick`, from 0 to 1, chooses among the processes that may be hit."""

    number: int
    kind: str
    step: int | None
    phase: str | None
    after_event: str | None
    delay_s: float
    seconds: float | None
    settle: bool
    pick: float


def read_plan(path: Path, kinds: Collection[str]) -> Plan:
    """A plan whose fault kinds are all known; whatever is wrong with it is one line."""
    try:
        plan = Plan.model_validate(read_yaml(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a plan with --plan; there are some in configs/chaos") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML: {' '.join(str(error).split())[:200]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = " ".join(f"{where + ': ' if where else ''}{first['msg']}".split())
        raise UserError(f"{path}: {said}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a date that is none, nested without end
        raise UserError(f"{path}: is no YAML: {' '.join(str(error).split())[:200]}") from None
    for run in plan.runs:
        for name in [*(fault.kind for fault in run.faults), *run.kinds]:
            if name not in kinds:
                raise UserError(f"{path}: run {run.name}: no fault is called {name!r}{did_you_mean(name, kinds)}; see --list")
    return plan


def schedule(run: RunPlan, seed: int) -> list[Scheduled]:
    """The run's faults with everything drawn; the same for the same seed, whatever stands beside it in the plan.

    Example:
        >>> run = RunPlan(name="a", faults=[{"kind": "x", "delay_s": (1, 2)}], draw=1, kinds=["y", "z"])
        >>> first, second = schedule(run, seed=3)
        >>> first.kind, 1 <= first.delay_s <= 2, second.kind in "yz", schedule(run, seed=3) == [first, second]
        ('x', True, True, True)
    """
    dice = random.Random(f"{seed}/{run.name}")
    drawn = [FaultPlan(kind=dice.choice(run.kinds)) for _ in range(run.draw)]
    return [
        Scheduled(
            number, fault.kind, fault.step, fault.phase, fault.after_event, dice.uniform(*fault.delay_s), fault.seconds,
            fault.settle, dice.random(),
        )
        for number, fault in enumerate([*run.faults, *drawn], start=1)
    ]  # fmt: skip


def kills(count: int, seed: int) -> RunPlan:
    """The driver killed so often in one run: while it starts, while it trains, and while a checkpoint is being written.

    Example:
        >>> {fault.kind for fault in kills(20, seed=0).faults}, len(kills(20, seed=0).faults)
        ({'driver_killed'}, 20)
    """
    dice = random.Random(f"{seed}/{KILLS}")
    faults = [_kill(dice.random()) for _ in range(count)]
    for fault, following in pairwise(faults):
        fault.settle = following.after_event != STARTED
    about = "the driver is killed again and again, at moments that the seed draws"
    return RunPlan(name=KILLS, about=about, faults=faults)


def _kill(moment: float) -> FaultPlan:
    if moment < 0.2:  # within a resumed run's start, which takes 20 to 40 s
        return FaultPlan(kind="driver_killed", after_event=STARTED, delay_s=(1.0, 25.0))
    if moment < 0.5:  # between the copy of the tensors and the manifest that names them
        return FaultPlan(kind="driver_killed", after_event="checkpoint", delay_s=(0.0, 0.3))
    return FaultPlan(kind="driver_killed", delay_s=(0.0, 8.0))
