"""A cluster's nodes, what runs on them, and how one is emptied before it goes. Joins the cluster that it runs in."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from medr3.errors import UserError
from medr3.ops.demand import words
from security.local_ray import find_on_this_machine

# Classes of Ray actors that belong to a run, as a person calls them. A worker of the learner cannot move.
KINDS = {"RolloutActor": "engine", "RayTrainWorker": "learner worker"}
REPLICA, LEARNER = "ServeReplica", "learner worker"
POLL_S = 2.0
MOST_ACTORS = 10_000  # Ray's own bound of one answer


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One living node."""

    node: str
    address: str
    head: bool
    offers: str
    runs: dict[str, int]  # processes of runs, by kind

    def __str__(self) -> str:
        runs = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(self.runs.items())) or "nothing"
        return f"{self.node}  {self.address}{' (head)' if self.head else ''}: offers {self.offers}, runs {runs}"


@contextmanager
def joined() -> Iterator[None]:
    """This process is part of the cluster that RAY_ADDRESS, or this machine, names."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or "auto"
    find_on_this_machine(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        raise UserError("no Ray cluster on this machine: name its dashboard with --address http://HOST:8265") from None
    try:
        yield
    finally:
        ray.shutdown()


def node_reports() -> list[NodeReport]:
    """The head first."""
    import ray
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    runs: dict[str, Counter[str]] = {}
    # Told, or Ray looks for one itself and finds every other Ray of this machine as well.
    here = ray.get_runtime_context().gcs_address
    try:
        actors = list_actors(here, filters=[("state", "=", "ALIVE")], limit=MOST_ACTORS, raise_on_missing_output=False)
    except (ConnectionError, RayStateApiException) as error:
        said = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(
            f"the Ray at {here} does not tell what runs on its nodes (a run's own has no dashboard): {said}"
        ) from None
    for actor in actors:
        kind = "retrieval replica" if actor.class_name.startswith(REPLICA) else KINDS.get(actor.class_name)
        if kind is not None:
            runs.setdefault(actor.node_id, Counter()).update([kind])
    alive = [_report(node, runs) for node in ray.nodes() if node["Alive"]]
    return sorted(alive, key=lambda node: not node.head)


def drain(name: str, deadline_s: float, *, force: bool) -> str:
    """Nothing new is placed on the node, and its engines move; returns what follows, in words."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    node = find_node(node_reports(), name)
    if node.head:
        raise UserError(f"{name}: is the head, without which there is no cluster: stop the run, then ray down")
    if node.runs.get(LEARNER) and not force:
        raise UserError(
            f"{name}: holds {node.runs[LEARNER]} learner worker(s), which cannot move: stop the run (it writes a checkpoint), drain"
            " the node, and submit again; or --force, and the run ends when the node does"
        )
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    # Preemption is the one reason that Ray accepts for a node with work on it.
    reason, until_ms = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + deadline_s) * 1000)
    accepted, why = client.drain_node(node.node, reason, "medr3 drain", until_ms)
    if not accepted:
        raise UserError(f"{name}: the cluster does not drain it: {why}")
    engines = node.runs.get("engine")
    moves = f"its {engines} engine(s) end their groups or give them back, and are replaced" if engines else "no engine is on it"
    return f"draining {node.node} ({node.address}) within {deadline_s:g} s: nothing new is placed there, {moves}"


def until_empty(name: str, deadline_s: float) -> bool:
    """Waits until no process of a run is on the node, or it is gone; false where the deadline came first."""
    deadline = time.monotonic() + deadline_s
    while any(node.runs for node in node_reports() if node.node.startswith(name) or node.address == name):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def find_node(nodes: list[NodeReport], name: str) -> NodeReport:
    """By the beginning of its id, or by its address where no other node has it."""
    found = [node for node in nodes if node.node.startswith(name) or node.address == name]
    if len(found) == 1:
        return found[0]
    known = "\n".join(str(node) for node in nodes)
    what = "is no node of this cluster" if not found else f"means {len(found)} nodes: name one by its id"
    raise UserError(f"{name}: {what}; there are\n{known}")


def _report(node: dict[str, Any], runs: dict[str, Counter[str]]) -> NodeReport:
    head = "node:__internal_head__" in node["Resources"]
    return NodeReport(
        node["NodeID"], node["NodeManagerAddress"], head, words(node["Resources"]), dict(runs.get(node["NodeID"], {}))
    )
