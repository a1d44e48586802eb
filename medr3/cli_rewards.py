"""`medr3 rewards`: what there is, what an episode earns, whether your own keeps the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from medr3.cli_common import Json, Run, load_config
from medr3.errors import UserError

rewards = typer.Typer(
    help="Look into rewards: what there is, what an episode earns, whether your own keeps the contract.", no_args_is_help=True
)


@rewards.command("list")
def list_rewards(as_json: Json = False) -> None:
    """Name every component with its range and arguments, and every shipped recipe."""
    from rewards.recipes import shipped
    from rewards.registry import COMPONENTS, arguments_of

    about = {name: (component.compute.__doc__ or "").partition("\n")[0] for name, component in COMPONENTS.items()}
    if as_json:
        components = {
            name: {
                "range": [component.low, component.high],
                "arguments": arguments_of(name),
                "needs": sorted(component.needs),
                "about": about[name],
            }
            for name, component in sorted(COMPONENTS.items())
        }
        print(json.dumps({"components": components, "recipes": shipped()}, indent=2))
        return
    for name, component in sorted(COMPONENTS.items()):
        print(f"{name:<22} {f'{component.low:g} … {component.high:g}':<8}  {about[name]}")
    print(f"recipes: {', '.join(shipped())}")


@rewards.command("explain")
def explain_reward(
    target: Annotated[str, typer.Argument(metavar="EPISODE.json|RUN", help="one row as JSON with its question, or a run")],
    episode: Annotated[str | None, typer.Argument(metavar="[GROUP/EPISODE]", help="of a run")] = None,
    recipe: Annotated[str, typer.Option(help="a shipped one, or a YAML file of that form; of a run: its own if left out")] = "",
    phase: Annotated[str, typer.Option(help="the recipe's phase")] = "",
    question: Annotated[Path | None, typer.Option(help="the question as JSON, where the row does not hold it")] = None,
    as_json: Json = False,
) -> None:
    """Print each component of an episode's reward with its reason, and the total."""
    from medr3.observe import explaining

    if episode is None:
        if not recipe:
            raise UserError("name the recipe: --recipe med_r3 --phase retrieval; medr3 rewards list names them all")
        asked, row = explaining.read_episode(Path(target), question)
        name, chosen = explaining.named_recipe(recipe, phase)
    else:
        from medr3.datasets import tasks_of
        from medr3.ops.local import find_run

        run = find_run(target)
        config = load_config(run / "config.json", [])
        row = explaining.find_episode(run, episode)
        try:
            asked = tasks_of(run, config).question(row.question_id)
        except (OSError, ValueError, KeyError):
            raise UserError(
                f"{run}: question {row.question_id!r} cannot be made anew: its world or its data set is gone"
            ) from None
        name = config.rules(row.phase, row.source).reward
        name, chosen = explaining.named_recipe(recipe, phase) if recipe else (name, config.rewards[name])
    explained = explaining.explain(asked, row, name, chosen)
    print(json.dumps(explained.as_dict(), indent=2) if as_json else explained)


@rewards.command("check")
def check_rewards(
    path: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="such as my_package.rewards:brevity")],
    style: Annotated[Literal["medr3", "verl"], typer.Option(help="how it is called")] = "medr3",
    low: Annotated[float | None, typer.Option(help="what its values never fall below")] = None,
    high: Annotated[float | None, typer.Option(help="what its values never rise above")] = None,
    as_json: Json = False,
) -> None:
    """Try a reward of your own on ordinary and hostile episodes, in a process that can be killed."""
    from rewards.config import OWN_REWARD

    if not OWN_REWARD.fullmatch(path):
        raise UserError(f"{path!r} is no path to a function: write module:function, such as my_package.rewards:brevity")
    from dataclasses import asdict

    from rewards.contract import check_reward

    verdict = check_reward(path, style=style, low=low, high=high)
    print(json.dumps({**asdict(verdict), "ok": verdict.ok}, indent=2) if as_json else verdict)
    raise typer.Exit(0 if verdict.ok else 1)


@rewards.command("table")
def table_rewards(run: Run = None) -> None:
    """Print what every component is worth over a run's episodes, by phase and source; by rule, without a judge."""
    from medr3.ops.local import find_run
    from rewards.table import as_markdown, component_table

    print(as_markdown(component_table(find_run(run))))
