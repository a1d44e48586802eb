"""What the parts of the command line share. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medr3.errors import UserError

if TYPE_CHECKING:
    from medr3.config import RunConfig

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/demo.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as rollout.num_engines=4")]
Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="run folder, or its name below runs/; the newest if left out")]
ForkOf = Annotated[
    str | None, typer.Option("--fork", metavar="RUN[@STEP]", help="begin with the weights and state of another run")
]
NewIndex = Annotated[bool, typer.Option("--new-index", help="let a fork answer from another index")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def load_config(path: Path, overrides: list[str]) -> RunConfig:
    """The resolved configuration; every problem in it is one line."""
    from pydantic import ValidationError

    from medr3.config import RunConfig, load
    from medr3.validation import describe_validation

    try:
        return load(path, overrides)
    except ValidationError as error:
        raise UserError("\n".join(describe_validation(error, RunConfig))) from None
