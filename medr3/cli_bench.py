"""`medr3 bench`: what this machine reaches, beside limits and peers. Benchmarks are imported when they run."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from medr3.cli_common import Json
from medr3.errors import UserError

bench = typer.Typer(
    help="Measure this machine: ratios of one run, beside their goals; compare two results.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BENCHMARKS = {
    "asynchrony": "the idle share of the machine while searches take a second",
    "curves": "the plateau and collapse rules on synthetic curves",
    "data": "reading, checking and building data sets",
    "end-to-end": "complete training steps, beside TRL's with --peer",
    "growth": "how cost and memory grow with corpus, context, group size, stored steps and engines",
    "judge": "what the judge's client adds to its server's time",
    "learner": "packing, arithmetic, two workers, memory; beside TRL's learner step with --peer",
    "ledger": "what accounting for a group costs",
    "limits": "each room beside its physical limit, in one table",
    "retrieval": "the retrieval service beside the bare library and a plain server",
    "rewards": "the rules of every shipped recipe on one core",
    "rollout": "whole episodes beside the same requests to the bare engine",
    "simulation": "the real ledger under 1 to 512 simulated engines",
    "startup": "medr3 train until its first step, cold, warm and resumed",
    "trajectories": "Arrow rows into the learner's arrays beside a plain copy",
    "weights": "from the end of a step until an engine has proved the new weights",
}
WITH_PEER = ("end-to-end", "learner")

Short = Annotated[bool, typer.Option("--short", help="fewer rounds and smaller sizes: minutes, not a figure to publish")]
Peer = Annotated[Path | None, typer.Option(help="an environment with TRL, as bench/peers/trl.sh makes it, to compare with")]


@bench.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="what medr3 bench NAME --json, or medr3 bench all, wrote")],
    second: Annotated[Path, typer.Argument(metavar="B", help="the newer one, which is held to the budget")],
    budget: Annotated[Path | None, typer.Option(help="bench/budgets.yaml if left out")] = None,
    as_json: Json = False,
) -> None:
    """Show two results side by side; exit 1 where a ratio of B is more than 10 % worse than its budget."""
    from bench.compare import BUDGETS, ResultRefused, comparison_table, read_budgets, read_results
    from bench.compare import compare as compare_results

    try:
        one, two = read_results(first), read_results(second)
        lines = compare_results(one, two, read_budgets(budget or BUDGETS))
    except ResultRefused as error:
        raise UserError(str(error)) from None
    print(json.dumps([line._asdict() for line in lines]) if as_json else comparison_table(one, two, lines))
    raise typer.Exit(any(line.failed for line in lines))


@bench.command("all")
def all_(
    out: Annotated[Path, typer.Option(help="file of all results, for medr3 bench compare")] = Path("bench.json"),
    only: Annotated[str, typer.Option(help="these alone, such as limits,startup")] = "",
    peer: Peer = None,
    short: Short = False,
) -> None:
    """Run the benchmarks one after another, each in a process of its own, and write one JSON."""
    _check_peer(peer)
    from bench.suite import NAMES, run_all

    names = [name.strip() for name in only.split(",") if name.strip()] or list(NAMES)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise UserError(f"--only: no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    raise typer.Exit(run_all(names, out, short=short, peer=peer))


@bench.command("time-to-reward")
def time_to_reward(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN]...", help="run folders; the first is compared with the others")
    ],
    accuracy: Annotated[float, typer.Option(min=0.0, max=1.0, help="of held-out probes")] = 0.8,
    phase: Annotated[str, typer.Option(help="whose questions count; those of the first run's last phase if left out")] = "",
    as_json: Json = False,
) -> None:
    """Tell from ended runs how many tokens, steps and seconds they took to a held-out accuracy."""
    from bench.harness import table
    from bench.time_to_reward import RunRefused
    from bench.time_to_reward import run as compare_runs

    try:
        measured = compare_runs(runs, accuracy, phase)
    except RunRefused as error:
        raise UserError(str(error)) from None
    print(json.dumps({**measured, "benchmark": "time-to-reward", "short": False}) if as_json else table(measured))


def _measure(name: str, short: bool, as_json: bool, peer: Path | None = None) -> None:
    _check_peer(peer)
    from bench.harness import table
    from bench.suite import SHORT, module_of

    settings: dict[str, Any] = dict(SHORT.get(name, {})) if short else {}
    if peer is not None:
        settings["peer"] = peer
    measured = import_module(module_of(name)).run(**settings)
    if as_json:
        print(json.dumps({**measured, "benchmark": name, "short": short}), flush=True)
    else:
        print(table(measured))


def _check_peer(peer: Path | None) -> None:
    if peer is not None and not (peer / "bin" / "python").exists():
        raise UserError(f"{peer}: is no Python environment: make one with bench/peers/trl.sh {peer}")


def _command(name: str) -> None:
    """`medr3 bench NAME`; a peer is an option only where there is one."""
    if name in WITH_PEER:

        def measure_beside(peer: Peer = None, short: Short = False, as_json: Json = False) -> None:
            _measure(name, short, as_json, peer)

        bench.command(name, help=f"Measure {BENCHMARKS[name]}.")(measure_beside)
    else:

        def measure(short: Short = False, as_json: Json = False) -> None:
            _measure(name, short, as_json)

        bench.command(name, help=f"Measure {BENCHMARKS[name]}.")(measure)


for _name in BENCHMARKS:
    _command(_name)
