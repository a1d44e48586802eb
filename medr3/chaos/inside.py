"""What a fault does from within a run's Ray, as a program of its own: `python -m medr3.chaos.inside WHAT RUN_FOLDER …`.

It joins the Ray that RAY_ADDRESS names, does its harm for some seconds, undoes it and leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from security.local_ray import find_on_this_machine

BLOCK = 4 * 2**20  # small enough that the last free bytes are taken as well
TIMES_FULL = 2  # what does not fit goes to the disk: so often is the store filled, and no more
APP_SUFFIX = "-retrieval"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["retrieval", "fill", "actors"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--failure-rate", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    import ray

    find_on_this_machine(os.environ.get("RAY_ADDRESS", ""))
    ray.init(log_to_driver=False, logging_level="ERROR", namespace="chaos")
    try:
        if given.what == "retrieval":
            disturb_retrieval(given.folder, given.failure_rate, given.delay, given.seconds)
        elif given.what == "fill":
            fill_store(given.seconds)
        else:
            print("\n".join(living_actors()))
    finally:
        ray.shutdown()


def disturb_retrieval(folder: Path, failure_rate: float, delay_s: float, seconds: float) -> None:
    """The run's application gets settings that only chaos uses, and its own ones back."""
    from medr3.config import RunConfig
    from medr3.run.services import unique_name
    from retrieval_service.app import deploy

    config = RunConfig.model_validate(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    app = f"medr3-{unique_name(config.run.name, folder)}{APP_SUFFIX}"
    index = Path(config.retrieval.index) if config.retrieval.index else folder / "index"
    disturbed = config.retrieval.model_copy(update={"inject_failure_rate": failure_rate, "inject_delay_s": delay_s})
    try:
        deploy(index, disturbed, app)
        time.sleep(seconds)
    finally:
        deploy(index, config.retrieval, app)


def fill_store(seconds: float) -> None:
    """Objects that are held until the end, twice what the store holds: the rest is on its disk."""
    import numpy as np
    import ray

    size = int(ray.cluster_resources()["object_store_memory"])
    held: list[Any] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if len(held) * BLOCK < TIMES_FULL * size:
            held.append(ray.put(np.zeros(BLOCK, dtype=np.uint8)))
        else:
            time.sleep(0.2)
    print(f"{len(held) * BLOCK / 2**20:.0f} MiB into a store of {size / 2**20:.0f} MiB")


def living_actors() -> list[str]:
    """Classes of actors that live, without Serve's own, which others may use."""
    from ray.util.state import list_actors

    found = list_actors(filters=[("state", "=", "ALIVE")], limit=10_000, raise_on_missing_output=False)
    return [actor.class_name for actor in found if actor.class_name != "ServeController"]


if __name__ == "__main__":
    main()
