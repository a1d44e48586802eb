"""`medr3 ablate`: what each part of a training is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medr3.cli_common import Config
from medr3.errors import UserError


def ablate(
    config: Config,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="for all arms alike")] = None,
    out: Annotated[Path, typer.Option(help="folder of the arms' runs and of the result")] = Path("runs/ablation"),
    seeds: Annotated[str, typer.Option(help="such as 10,11,12; fix them before you look")] = "10,11,12",
    arms: Annotated[Path | None, typer.Option(help="YAML of arms; by default ablations/ beside the configuration")] = None,
    only: Annotated[list[str] | None, typer.Option(help="an arm to run beside the first; may be repeated")] = None,
) -> None:
    """Train the same run with one part taken away at a time, at equal cost, and compare; goes on where it was interrupted."""
    from medr3.evaluation.ablation import read_arms, run_arms
    from medr3.evaluation.ablation_table import as_json, as_markdown, as_svg, compare_arms
    from medr3.evaluation.stages import read_stages, stages_as_markdown

    try:
        chosen = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {seeds}: write whole numbers with commas between them, such as 10,11,12") from None
    found = read_arms(config, arms, only or [])
    run_arms(config, found, chosen, overrides or [], out, say=print)
    results = compare_arms(out, found, chosen)
    (out / "ablation.json").write_text(as_json(results), encoding="utf-8")
    rose = stages_as_markdown(read_stages([out / found[0].folder / f"seed-{seed}" for seed in chosen]))
    told = f"{as_markdown(results)}\n\nHow `{found[0].name}` rose, over all seeds:\n\n{rose}\n"
    (out / "ablation.md").write_text(told, encoding="utf-8")
    (out / "ablation.svg").write_text(as_svg(results), encoding="utf-8")
    print(told)
    print(f"figure: {out / 'ablation.svg'}")
