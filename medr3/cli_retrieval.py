"""`medr3 retrieval`: build, serve and measure indexes."""

from __future__ import annotations

import typer

from medr3.cli_retrieval_build import build, update, world
from medr3.cli_retrieval_eval import evaluate
from medr3.cli_retrieval_serve import serve

retrieval = typer.Typer(help="Build, serve and measure indexes of documents.", no_args_is_help=True)
for _command in (build, update, serve, world):
    retrieval.command()(_command)
retrieval.command("eval")(evaluate)


@retrieval.callback()
def _group() -> None:
    """Build, serve and measure indexes of documents."""
