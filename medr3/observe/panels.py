"""What the dashboards draw: panels made from the registry, and a few of Ray's own figures beside them. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medr3.observe.registry import METRICS, PREFIX, Kind, Metric

DASHBOARDS = {
    "overview": "How the policy gets better: reward, held-out scores, phases",
    "rollouts": "What the engines do: speed, length, age, the buffer",
    "retrieval": "What is looked up: latency, cache, failures",
    "learner": "What is learned: losses, clipping, mismatch, where the time goes",
    "reliability": "What fails: engines, groups, checkpoints, machines, alerts",
}
RUN = '{run=~"$run"}'  # Grafana puts the chosen runs in the place of $run
# Long enough to hold two steps of most runs, short enough to show when something began.
WINDOW = "10m"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and the legend of its curves."""

    expr: str
    legend: str
    heatmap: bool = False
    rare: str = ""  # when it has data, where not every run does


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    dashboard: str
    title: str
    unit: str
    help: str
    queries: tuple[Query, ...]


def query_of(metric: Metric, *, alone: bool) -> Query:
    """How a metric is drawn; `alone` on its panel it needs no name in the legend, and is told apart by phase.

    Example:
        >>> from medr3.observe.registry import METRICS
        >>> query_of(METRICS["finish/{reason}"], alone=True).expr
        'max by (run, reason) (ray_medr3_finish{run=~"$run"})'
    """
    labels = [label for label in metric.labels if label != "phase"]
    if metric.kind is Kind.HISTOGRAM:
        counted = f"sum by (le) (increase({metric.exported}{RUN}[{WINDOW}]))"
        return Query(counted, "{{le}}", heatmap=True, rare=metric.rare)
    by_phase = (alone and not labels and not metric.query) or "phase" in metric.labels
    grouped = ", ".join(["run", *(["phase"] if by_phase else []), *labels])
    shown = [f"{{{{{label}}}}}" for label in (["phase"] if by_phase else []) + labels]
    name = [] if alone else [_short(metric)]
    legend = " ".join(["{{run}}", *name, *shown])
    if metric.kind is Kind.COUNTER:
        return Query(f"sum by ({grouped}) (increase({metric.exported}{RUN}[{WINDOW}]))", legend, rare=metric.rare)
    drawn = f"max by ({grouped}) ({metric.exported}{RUN})"
    return Query(metric.query.replace("{}", drawn) or drawn, legend, rare=metric.rare)


def panels() -> tuple[Panel, ...]:
    """All panels, in the registry's order; those of Ray's own figures close their dashboards."""
    grouped: dict[str, list[Metric]] = {}
    for metric in METRICS.values():
        if not metric.panel.startswith("-"):
            grouped.setdefault(metric.panel, []).append(metric)
    return (*(_panel(place, metrics) for place, metrics in grouped.items()), *_OTHERS)


def queries() -> Iterator[tuple[Panel, Query]]:
    for panel in panels():
        for query in panel.queries:
            yield panel, query


def _panel(place: str, metrics: list[Metric]) -> Panel:
    dashboard, _, title = place.partition(": ")
    drawn = tuple(query_of(metric, alone=len(metrics) == 1) for metric in metrics)
    unit = metrics[0].unit
    if metrics[0].kind is Kind.COUNTER:
        unit = f"{unit} per {WINDOW}"
    elif metrics[0].query:
        unit = "s"
    told = "\n".join(f"{_short(metric)}: {metric.help}" for metric in metrics) if len(metrics) > 1 else metrics[0].help
    return Panel(dashboard, title, unit, told, drawn)


def _short(metric: Metric) -> str:
    """The last part of a name that is not a label: what tells a metric from the others of its panel."""
    parts = [part for part in metric.name.split("/") if not part.startswith("{")]
    return parts[-1].split("{")[0].strip("_").replace("_", " ")


_FAILED_SEARCHES = (
    f'sum by (run, cause) (increase({PREFIX}medr3_groups_failed_total{{run=~"$run", cause=~"retrieval.*"}}[{WINDOW}]))'
)
_SERVED = f"sum by (deployment) (rate({PREFIX}serve_deployment_request_counter_total[{WINDOW}]))"
_SERVE_MS = (
    f"histogram_quantile(0.99, sum by (deployment, le) (rate({PREFIX}serve_deployment_processing_latency_ms_bucket[{WINDOW}])))"
)
_ON_GPUS = "a cluster with GPUs"
_OTHERS = (
    Panel(
        "retrieval", "Attempts lost to retrieval", f"groups per {WINDOW}", "attempts at groups that failed because a search did",
        (Query(_FAILED_SEARCHES, "{{run}} {{cause}}"),),
    ),
    Panel(
        "retrieval", "Calls answered by Serve", "calls/s", "calls that Ray Serve's deployments answered; one call holds many searches",
        (Query(_SERVED, "{{deployment}}"),),
    ),
    Panel(
        "retrieval", "Latency in Serve, 99th percentile", "ms", "of calls within a replica, as Ray Serve measures it",
        (Query(_SERVE_MS, "{{deployment}}"),),
    ),
    Panel(
        "retrieval", "Calls that wait for a replica", "calls", "queued at the handles, as Ray Serve counts them",
        (Query(f"sum by (deployment) ({PREFIX}serve_deployment_queued_queries)", "{{deployment}}"),),
    ),
    Panel(
        "reliability", "Memory of the nodes", "share", "used share of each node's memory",
        (Query(f"max by (instance) ({PREFIX}node_mem_used) / max by (instance) ({PREFIX}node_mem_total)", "{{instance}}"),),
    ),
    Panel(
        "reliability", "CPU of the nodes", "percent", "use of each node's cores",
        (Query(f"max by (instance) ({PREFIX}node_cpu_utilization)", "{{instance}}"),),
    ),
    Panel(
        "reliability", "GPUs", "percent", "use of each GPU",
        (Query(f"max by (instance, GpuIndex) ({PREFIX}node_gpus_utilization)", "{{instance}} {{GpuIndex}}", rare=_ON_GPUS),),
    ),
    Panel(
        "reliability", "GPU memory", "MiB", "used memory of each GPU",
        (Query(f"max by (instance, GpuIndex) ({PREFIX}node_gram_used)", "{{instance}} {{GpuIndex}}", rare=_ON_GPUS),),
    ),
    Panel(
        "reliability", "Object store", "bytes", "what Ray's object store holds, by where it lies",
        (Query(f"sum by (Location) ({PREFIX}object_store_memory)", "{{Location}}"),),
    ),
    Panel(
        "reliability", "Nodes", "nodes", "nodes that Ray's autoscaler knows as active",
        (Query(f"sum by (node_type) ({PREFIX}cluster_active_nodes)", "{{node_type}}", rare="a cluster with an autoscaler"),),
    ),
    Panel(
        "reliability", "Alerts", "firing = 1", "alerts of this system that fire",
        (Query('ALERTS{alertname=~"Medr3.+", alertstate="firing"}', "{{alertname}} {{run}}", rare="something is wrong"),),
    ),
)  # fmt: skip
