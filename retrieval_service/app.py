"""The Ray Serve application.

::

    client ──list of queries──▶ handle: bounded queue ──▶ Replica: calls that wait are merged ──▶ one thread: FAISS ‖ BM25
                                 └─ full: BackPressureError
    HTTP, MCP ──▶ Gateway (a deployment with a server of its own, only if `http_port` is set) ──▶ the same client

Serving another index, or the same one with other weights, is deploying again: replicas load it beside their searches and then
answer from it. Nothing restarts, unless the code or the deployment's shape has changed.
"""

from __future__ import annotations

import hashlib
import time
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from retrieval_service.config import RetrievalConfig
from retrieval_service.gateway import Gateway, bound_socket
from retrieval_service.http_guard import read_token
from retrieval_service.identity import expected_identity
from retrieval_service.manifest import IndexManifest, IndexRefused
from retrieval_service.replica import Replica, settings_of

REPLICA, GATEWAY = "Replica", "Gateway"
# A canary that takes this long means that the searching thread is stuck: the largest batches take well under a second.
_HEALTH_TIMEOUT_S = 30.0
_HEALTH_PERIOD_S = 5.0
_STARTS = 3  # a replica that cannot load its index will not learn it at the twentieth try, which is Serve's default
_DRAIN_S = 2.0  # for the batches in flight when the application is taken down
_SWAP_POLL_S = 0.1
_SWAP_TIMEOUT_S = 600.0  # to check and open an index of some hundred gigabytes
# What the gateway looks at: with another index or other weights it goes on as it is.
_GATEWAY_FIELDS = {
    "http_host", "http_port", "http_token_file", "mode", "max_queued", "max_batch", "deadline_s", "coalesce_s", "retries",
}  # fmt: skip
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def deploy(index_folder: Path, config: RetrievalConfig, app_name: str) -> DeploymentHandle[Any]:
    """Serves an index and returns the handle, once every replica answers from it. The folder must be readable on every node.

    An index that does not fit the configuration is refused here (IndexRefused), before anything starts. Where the application
    runs already, it takes the new index and settings without dropping a search, or keeps the old ones and raises.
    """
    IndexManifest.read(index_folder).require(expected_identity(config), index_folder)
    serve.start(proxy_location="Disabled")
    before = _served_settings(app_name)
    if config.http_port and not before:
        check_http(config)
    handle = _run(settings_of(index_folder, config), app_name)
    if before:
        try:
            _wait_for_swap(handle, settings_of(index_folder, config), index_folder)
        except IndexRefused:
            _run(before, app_name)
            raise
    return handle


def handle_of(app_name: str) -> DeploymentHandle[Any]:
    """A handle to an application that may still be on its way: it can be handed on at once, and a search waits for a replica."""
    return DeploymentHandle(REPLICA, app_name)


def undeploy(app_name: str) -> None:
    """Takes the application down and waits until it is gone. Serve itself stays, for others may use it."""
    serve.delete(app_name)


def check_http(config: RetrievalConfig) -> None:
    """What the gateway would stumble over, said here: ValueError for a token, PortTaken for the port."""
    if config.http_token_file:
        read_token(config.http_token_file)
    bound_socket(config.http_host, config.http_port).close()


def _run(settings: dict[str, Any], app_name: str) -> DeploymentHandle[Any]:
    config = RetrievalConfig.model_validate(settings["config"])
    deployment = serve.deployment(
        name=REPLICA,
        num_replicas=config.replicas,
        ray_actor_options={
            "num_cpus": config.replica_cpus,
            "memory": config.replica_memory_gib * 2**30,
            "resources": config.replica_resources,
        },
        # Calls beyond one full batch of lone queries wait at the handle, where they are counted against max_queued.
        max_ongoing_requests=config.max_batch,
        max_queued_requests=config.max_queued,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=_DRAIN_S,
        max_constructor_retry_count=_STARTS,
        logging_config=_QUIET,
        user_config=settings,
    )(Replica)
    replica = _versioned(deployment, "").bind()
    if not config.http_port:
        return serve.run(replica, name=app_name, route_prefix=None)
    gateway = serve.deployment(
        name=GATEWAY,
        # It parses and waits; searches have the cores. On this node, because that is where callers look for the port.
        ray_actor_options={"num_cpus": 0, "resources": {_this_node(): 0.001}},
        graceful_shutdown_timeout_s=_DRAIN_S,
        health_check_period_s=_HEALTH_PERIOD_S,
        max_constructor_retry_count=_STARTS,
        logging_config=_QUIET,
    )(Gateway)
    arguments = config.model_dump_json(include=_GATEWAY_FIELDS)
    serve.run(_versioned(gateway, arguments).bind(replica, config), name=app_name, route_prefix=None)
    return serve.get_deployment_handle(REPLICA, app_name)


def _this_node() -> str:
    """The resource that only this node has."""
    here = ray.get_runtime_context().get_node_id()
    address: str = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    return f"node:{address}"


def _versioned(deployment: Any, arguments: str) -> Any:
    """Serve gives every deployment a random version and would restart its replicas each time; ours says when they must."""
    return deployment.options(version=hashlib.sha256(f"{_code_version()}{arguments}".encode()).hexdigest()[:16], _internal=True)


@cache
def _code_version() -> str:
    """A hash of this room's code: replicas that run other code are restarted."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _served_settings(app_name: str) -> dict[str, Any] | None:
    """What the application serves now, if it runs."""
    if app_name not in serve.status().applications:
        return None
    try:
        found = serve.get_deployment_handle(REPLICA, app_name).broadcast("settings").results(timeout_s=_HEALTH_PERIOD_S)
    except Exception:  # it is starting, ending or broken: then it is replaced, not swapped
        return None
    return found[0][0] if found else None


def _wait_for_swap(handle: DeploymentHandle[Any], wanted: dict[str, Any], folder: Path) -> None:
    """Until all replicas serve what is wanted; one that refuses it decides."""
    until = time.monotonic() + _SWAP_TIMEOUT_S
    while time.monotonic() < until:
        replicas = handle.broadcast("settings").results(timeout_s=_HEALTH_TIMEOUT_S)
        if refused := next((reason for _, reason in replicas if reason), ""):
            raise IndexRefused(f"{folder} was not taken, the index before it is still served: {refused}")
        if replicas and all(settings == wanted for settings, _ in replicas):
            return
        time.sleep(_SWAP_POLL_S)
    raise IndexRefused(f"{folder} was not loaded within {_SWAP_TIMEOUT_S:g} s")
