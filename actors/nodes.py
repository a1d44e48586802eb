"""Which nodes are about to go: Ray's own word, and the only place where it is asked for.

`ray drain-node`, cluster managers that pass a spot notice on, and Ray's autoscaler when it ends an idle node all tell the cluster's
control service (GCS), which then places nothing new on the node. Nobody tells the actors on it, and nothing ends by itself:
whoever gave notice ends the node, at the deadline or later. There is no public call to ask for it; Serve and Train use this one.
"""

from __future__ import annotations

import asyncio
import time

_ANSWER_S = 5  # a control service that takes longer has other worries, and is asked again soon


async def draining_nodes() -> dict[str, float | None]:
    """Seconds left by node id, as far as Ray was told a deadline; in the driver."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RpcError

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    try:
        deadlines: dict[str, int] = await asyncio.to_thread(client.get_draining_nodes, timeout=_ANSWER_S)
    except RpcError:
        return {}
    now_ms = time.time() * 1000
    return {node: max(0.0, (deadline - now_ms) / 1000) if deadline else None for node, deadline in deadlines.items()}
