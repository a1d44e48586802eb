"""`medr3 chaos`: faults on the real processes of small runs, and what must hold after them; `medr3 chaos soak`: does anything pile up?"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from medr3.errors import UserError

chaos = typer.Typer(
    help="Do faults to the real processes of small runs, check what must hold, and watch for what piles up.",
    invoke_without_command=True,
    subcommand_metavar="[soak]",
)
PLAN = Path("configs/chaos/short.yaml")


@chaos.callback()
def run(
    context: typer.Context,
    plan: Annotated[Path, typer.Option(help="YAML of runs and faults")] = PLAN,
    seed: Annotated[int, typer.Option(help="draws moments and targets; the runs' own seed as well")] = 0,
    out: Annotated[Path, typer.Option(help="folder of the runs and of the record")] = Path("runs/chaos"),
    kills: Annotated[int, typer.Option(min=0, help="in place of the plan's runs: one run whose driver is killed so often")] = 0,
    broken: Annotated[
        str, typer.Option(help="break this on purpose in what a run left, to see that it is found; --list names what can be")
    ] = "",
    list_kinds: Annotated[
        bool, typer.Option("--list", help="the kinds of faults, the invariants, and what can be broken; end")
    ] = False,
) -> None:
    """Make a plan's runs, do its faults to them, and end with 1 where an invariant does not hold."""
    signal.signal(signal.SIGTERM, _terminated)
    if context.invoked_subcommand:
        return
    from medr3.chaos.breaking import BREAKAGES
    from medr3.chaos.faults import KINDS
    from medr3.chaos.invariants import INVARIANTS
    from medr3.errors import did_you_mean

    if list_kinds:
        from medr3.chaos.record import listing

        print(listing())
        return
    if broken and broken not in BREAKAGES:
        raise UserError(f"--broken {broken}: nothing is called so{did_you_mean(broken, BREAKAGES)}; see --list")
    from medr3.chaos.plan import kills as killing
    from medr3.chaos.plan import read_plan
    from medr3.chaos.record import Record
    from medr3.chaos.runner import make_runs

    chosen = read_plan(plan, KINDS)
    if kills:
        chosen = chosen.model_copy(update={"runs": [killing(kills, seed)]})
    record = Record(plan, seed, out)
    for evidence in make_runs(chosen, seed, out, say=_say):
        if broken and evidence.twin is not None:
            evidence = BREAKAGES[broken](evidence)
        for line in record.add(evidence):
            _say(line)
    print(record.write())
    if record.violations:
        print(f"violated: {', '.join(dict.fromkeys(name for name in INVARIANTS if name in record.violations))}")
    raise typer.Exit(1 if record.violations else 0)


@chaos.command()
def soak(
    minutes: Annotated[float, typer.Option(min=1, help="how long the run trains")] = 30,
    plan: Annotated[Path, typer.Option(help="YAML of the run")] = Path("configs/chaos/soak.yaml"),
    seed: Annotated[int, typer.Option(help="the run's own")] = 0,
    out: Annotated[Path, typer.Option(help="folder of the run and of the record")] = Path("runs/soak"),
) -> None:
    """Train one small run for a while, and end with 1 where memory, descriptors, shared memory or step time grow."""
    from medr3.chaos.faults import KINDS
    from medr3.chaos.plan import read_plan
    from medr3.chaos.soak import soak as soak_run

    told, flat = soak_run(read_plan(plan, KINDS), minutes, seed, out, say=_say)
    print(told)
    raise typer.Exit(0 if flat else 1)


def _terminated(number: int, frame: object) -> None:
    """As Ctrl-C does: what was started here is ended on the way out."""
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, flush=True)
