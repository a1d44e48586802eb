"""Runs on a cluster, before anything of this project is known to be there: what each node has installed, as one JSON line.

Its source is sent as text (`python -c`), so it uses nothing but Ray and the standard library.
"""

import json
from importlib import metadata

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NODE_TIMEOUT_S = 60  # a node that cannot start a task within this has no place for a run either


@ray.remote(num_cpus=0, max_retries=0)
def installed() -> tuple[str, bool]:
    """This node's version of the distribution ("" if absent), and whether its vLLM plugin is registered."""
    try:
        version = metadata.version("medr3")
    except metadata.PackageNotFoundError:
        version = ""
    plugins = {entry.name for entry in metadata.entry_points(group="vllm.general_plugins")}
    return version, "medr3_weights" in plugins


def main() -> None:
    ray.init(log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        installed.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    answers = ray.get(asked, timeout=NODE_TIMEOUT_S)
    report = [[node["NodeManagerAddress"], *answer] for node, answer in zip(nodes, answers, strict=True)]
    print("medr3-probe " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
