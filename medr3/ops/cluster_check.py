"""What a cluster said of itself (`cluster_probe.py`), held against what a run needs. Pure: facts in, checks out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from medr3.config import RunConfig
from medr3.ops.check import Check
from medr3.ops.demand import Shape, demands, unplaceable, words
from medr3.ops.preflight import DEMO_DISK

Facts = dict[str, Any]
SETUP = "run the setup_commands of cluster.yaml there, or build deploy/Containerfile anew"
CARD_SLACK = 0.95  # a card of "80 GB" reports 79 GiB


def check_cluster(facts: Facts, config: RunConfig | None) -> list[Check]:
    """Every node's installation; with a configuration also room, cards and shared storage."""
    nodes: list[Facts] = facts["nodes"]
    answered = [node for node in nodes if "silent" not in node]
    checks = [
        _each("nodes", nodes, _silent, _summary(nodes), "look at it with ray status, or drain it"),
        _each("version", answered, _version, f"medr3 {metadata.version('medr3')} on every node", SETUP),
        _each("Ray", answered, _ray, f"{metadata.version('ray')} on every node", SETUP),
        _each("vLLM plugin", answered, _plugin, "on every node", SETUP),
    ]
    if config is not None:
        checks += [_room(facts, config), _cards(answered, config), _storage(facts, answered), _weights(answered, config)]
    return checks


def shapes(facts: Facts) -> list[Shape]:
    """The nodes that there may be: those that the autoscaler can add, or, without one, those that there are."""
    nodes = facts["nodes"]
    if facts["types"]:
        heads = [Shape("head", node["resources"], 1) for node in nodes if node["head"]]
        return heads + [Shape(kind["name"], kind["resources"], kind["most"]) for kind in facts["types"]]
    alike = Counter((("head" if node["head"] else "node"), tuple(sorted(_offered(node).items()))) for node in nodes)
    return [Shape(name, dict(offered), count) for (name, offered), count in alike.items()]


def _offered(node: Facts) -> dict[str, float]:
    return {name: amount for name, amount in node["resources"].items() if ":" not in name and name != "object_store_memory"}


def _summary(nodes: list[Facts]) -> str:
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(_offered(node))
    total.pop("memory", None)
    return f"{len(nodes)}, with {words(total)}"


def _silent(node: Facts) -> str:
    return f"{node['address']}: {node['silent']}" if "silent" in node else ""


def _version(node: Facts) -> str:
    wanted = metadata.version("medr3")
    return "" if node["version"] == wanted else f"node {node['address']} has {node['version'] or 'no medr3'}, this is {wanted}"


def _ray(node: Facts) -> str:
    """A task of another Ray or Python cannot be read: Ray's whole version, and Python's first two numbers, must agree."""
    here = (metadata.version("ray"), f"{sys.version_info[0]}.{sys.version_info[1]}")
    there = (node["ray"], node["python"])
    return (
        ""
        if here == there
        else f"node {node['address']} has Ray {there[0]} on Python {there[1]}, this is {here[0]} on {here[1]}"
    )


def _plugin(node: Facts) -> str:
    return "" if node["plugin"] else f"node {node['address']} has no medr3_weights"


def _room(facts: Facts, config: RunConfig) -> Check:
    asked = demands(config)
    missing = unplaceable(asked, shapes(facts))
    found = "; ".join(missing) or "for " + ", ".join(f"{each.count} {each.kind}" for each in asked)
    if config.run.placement == "anywhere" and {"learner", "rollout"} <= {kind["name"] for kind in facts["types"]}:
        found += " (the cluster has groups of nodes: run.placement=groups uses them)"
    if missing and not facts["growth_known"]:  # Kubernetes' autoscaler keeps its bounds to itself
        return Check("room", True, f"{found} (more may come: this cluster's autoscaler does not say how many)", "")
    mend = "add such nodes, raise their max_workers, or ask for less with rollout.num_engines and learner.workers"
    return Check("room", not missing, found, mend)


def _cards(nodes: list[Facts], config: RunConfig) -> Check:
    """Only cards that are there can be looked at; those of nodes to come are as the configuration says."""
    hardware, grouped = config.hardware, config.run.placement == "groups"
    wanted = {}
    if config.learner.gpus_per_worker:
        wanted["learner"] = hardware.learner_gpu_gib
    if not config.rollout.engine.on_cpu:
        wanted["rollout"] = hardware.engine_gpu_gib

    def too_small(node: Facts) -> str:
        least = max((gib for group, gib in wanted.items() if not grouped or group in node["resources"]), default=0)
        small = [mib / 1024 for mib in node["gpus_mib"] if mib / 1024 < CARD_SLACK * least]
        return f"node {node['address']} has a GPU of {small[0]:.0f} GiB, and hardware says {least:g}" if small else ""

    seen = sum(len(node["gpus_mib"]) for node in nodes)
    mend = "set hardware.learner_gpu_gib and hardware.engine_gpu_gib to what the cards have"
    return _each("GPU memory", nodes, too_small, f"{seen} GPUs looked at" if wanted else "no GPU is asked for", mend)


def _storage(facts: Facts, nodes: list[Facts]) -> Check:
    folder, name = facts["folder"], "run folder"
    path, free_gib = folder["path"], folder["free"] / 2**30
    if folder["refused"]:
        mend = "make room there, or set run.folder to storage that every node has mounted and may write to"
        return Check(name, False, f"{path} on the head: {folder['refused']}", mend)
    if folder["free"] < DEMO_DISK:
        return Check(name, False, f"{path} has {free_gib:.1f} GiB free", f"make room: {DEMO_DISK / 2**30:g} GiB are the least")

    def blind(node: Facts) -> str:
        return "" if node["sees"] else f"node {node['address']} does not see what the head wrote to {path}"

    found = f"{path}: every node sees what the head writes, {free_gib:.0f} GiB free"
    return _each(name, nodes, blind, found, "mount the same storage on every node")


def _weights(nodes: list[Facts], config: RunConfig) -> Check:
    """New weights are a file: engines on another machine than the learner see it only on shared storage."""
    folder = config.learner.weights_folder
    machines = {node["address"] for node in nodes if not node["head"]}
    apart = config.run.placement == "groups" and len(machines) > 1 and Path(folder).is_relative_to("/dev/shm")
    found = f"published in {folder}" + (", which machines do not share" if apart else "")
    return Check("weights", not apart, found, "set learner.weights_folder to a folder of the shared storage")


def _each(name: str, nodes: list[Facts], wrong: Callable[[Facts], str], right: str, mend: str) -> Check:
    """The first node that is not as it should be stands for all like it."""
    found = [line for node in nodes if (line := wrong(node))]
    more = f", and {len(found) - 1} more like it" if len(found) > 1 else ""
    return Check(name, not found, found[0] + more if found else right, mend)
