"""`medr3 dashboard`: a run's own page, and what other tools show of it. Commands import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medr3.cli_common import Run
from medr3.errors import UserError

PORT = 8266  # beside Ray's own dashboard, 8265


class _ServeByDefault(TyperGroup):
    """`medr3 dashboard RUN` is `medr3 dashboard serve RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


dashboard = typer.Typer(
    cls=_ServeByDefault,
    help="A run's page: `medr3 dashboard RUN` serves it on this machine, and keeps it up to date while the run goes on.",
    rich_markup_mode=None,
)


@dashboard.command("serve")
def serve(
    run: Run = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = PORT,
    address: Annotated[
        str | None,
        typer.Option(help="a cluster's dashboard, such as http://127.0.0.1:8265: RUN is then a job, the newest if left out"),
    ] = None,
) -> None:
    """Serve a run's page on this machine until Ctrl-C (the default)."""
    folder = _of_job(address, run) if address else _here(run)
    from medr3.observe.serving import Dashboard

    page = Dashboard(folder, port)
    try:
        print(f"{folder}: {page.url} (Ctrl-C ends it)", flush=True)
        page.watch()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()


@dashboard.command("export")
def export(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="a folder; files of an earlier export are written over")],
    ray_folder: Annotated[Path, typer.Option(help="the --temp-dir of the cluster's head node")] = Path("/tmp/ray"),
    prometheus: Annotated[str, typer.Option(metavar="URL", help="where Grafana finds Prometheus")] = "http://localhost:9090",
    scrape_s: Annotated[int, typer.Option(min=1, help="seconds between two readings")] = 10,
) -> None:
    """Write Grafana dashboards, Prometheus' scrape configuration and alert rules."""
    from medr3.observe.monitoring import export_dashboards

    for path in export_dashboards(out, ray_folder=ray_folder, prometheus=prometheus, scrape_s=scrape_s):
        print(path)


def _here(run: str | None) -> Path:
    from medr3.ops.local import find_run

    return find_run(run)


def _of_job(address: str, job: str | None) -> Path:
    """The folder of a cluster's training, where this machine sees it too: on shared storage, or on the head itself."""
    from medr3.ops.connection import connect
    from medr3.ops.jobs import FOLDER, find_training

    found = find_training(connect(address), job)
    folder = found.about.get(FOLDER)
    if folder is None:
        raise UserError(f"job {found.job}: was not sent by medr3 submit: it does not say where its run is")
    if not Path(folder).is_dir():
        raise UserError(
            f"job {found.job}: its run is in {folder}, which this machine does not see: mount it here, or run medr3 dashboard {folder}"
            f" on a node that does, and forward the port: ssh -L {PORT}:127.0.0.1:{PORT} NODE"
        )
    return Path(folder)
