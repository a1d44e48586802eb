"""What a run asks a cluster for, and whether the cluster can ever give it. Pure arithmetic, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medr3.config import RunConfig

Bundle = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` processes of one kind, each of which needs a bundle of resources on one node."""

    kind: str
    count: int
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Shape:
    """Nodes of one kind: what one offers, and how many there may be."""

    name: str
    resources: Bundle
    most: int


def demands(config: RunConfig) -> list[Demand]:
    """Everything that a run places, but for what needs a processor only for moments."""
    rollout, learner, retrieval = config.rollout, config.learner, config.retrieval
    engine = rollout.engine
    workers = engine.tensor_parallel_size
    engines = rollout.autoscale.min_engines if rollout.autoscale else rollout.num_engines
    return [
        Demand("learner workers", learner.workers, _bundle(learner.cpus_per_worker, learner.gpus_per_worker, learner.worker_resources)),
        Demand(
            "engines", engines + config.evaluation.engines,
            _bundle(engine.cpu_threads * workers if engine.on_cpu else 1, engine.gpus * workers, engine.resources),
        ),
        Demand(
            "retrieval replicas", retrieval.replicas,
            _bundle(retrieval.replica_cpus, 0, retrieval.replica_resources) | _memory(retrieval.replica_memory_gib),
        ),
    ]  # fmt: skip


def unplaceable(asked: Sequence[Demand], shapes: Sequence[Shape]) -> list[str]:
    """One line for each kind of process that does not find room, however long one waits. First fit, the largest first.

    Example:
        >>> gpus = Shape("rollout", {"CPU": 8, "GPU": 1}, most=2)
        >>> unplaceable([Demand("engines", 2, {"CPU": 1, "GPU": 1})], [gpus])
        []
        >>> unplaceable([Demand("engines", 4, {"GPU": 1})], [gpus])
        ['engines: 4 × (1 GPU) are asked for, and 2 find room: there are at most 2 × rollout (8 CPU, 1 GPU)']
    """
    free = [dict(shape.resources) for shape in shapes for _ in range(min(shape.most, _count(asked)))]
    lines = []
    for demand in sorted(asked, key=lambda demand: _weight(demand.bundle), reverse=True):
        placed = sum(_take(free, demand.bundle) for _ in range(demand.count))
        if placed < demand.count:
            there = ", ".join(f"{shape.most} × {shape.name} ({words(shape.resources)})" for shape in shapes if shape.most)
            lines.append(
                f"{demand.kind}: {demand.count} × ({words(demand.bundle)}) are asked for, and {placed or 'none'}"
                f" {'finds' if placed <= 1 else 'find'} room: there are at most {there or 'no nodes'}"
            )
    return lines


def words(bundle: Bundle) -> str:
    """Resources for a person, without Ray's own marks and the object store.

    Example:
        >>> words({"CPU": 8.0, "memory": 4 * 2**30, "node:10.0.0.1": 1.0, "rollout": 0.001})
        '8 CPU, 4 GiB memory, 0.001 rollout'
    """
    named = [
        f"{amount / 2**30:.3g} GiB memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in bundle.items()
        if amount and name != "object_store_memory" and ":" not in name
    ]
    return ", ".join(named) or "nothing"


def _bundle(cpus: float, gpus: float, custom: Bundle) -> dict[str, float]:
    return {name: amount for name, amount in {"CPU": cpus, "GPU": gpus, **custom}.items() if amount}


def _memory(gib: float) -> dict[str, float]:
    return {"memory": gib * 2**30} if gib else {}


def _count(asked: Sequence[Demand]) -> int:
    """No more nodes than processes are ever needed."""
    return sum(demand.count for demand in asked)


def _weight(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0), bundle.get("CPU", 0)


def _take(free: list[dict[str, float]], bundle: Bundle) -> bool:
    rounding = 1e-9  # sums of thousandths
    for node in free:
        # A node type that does not declare its memory has some; how much shows only when a node has started.
        asked = {name: amount for name, amount in bundle.items() if name != "memory" or name in node}
        if all(node.get(name, 0) + rounding >= amount for name, amount in asked.items()):
            for name, amount in asked.items():
                node[name] -= amount
            return True
    return False
