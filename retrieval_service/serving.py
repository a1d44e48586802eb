"""The service by itself: its own Ray on this machine, one index, HTTP and MCP, until it is told to end.

An index that is named by a symbolic link is followed: where the link points elsewhere, the new index is taken without dropping a
request, and one that is refused changes nothing.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from retrieval_service.config import RetrievalConfig
from retrieval_service.identity import config_of
from retrieval_service.manifest import IndexManifest, IndexRefused
from security.local_ray import stay_on_this_machine

APP = "medr3-retrieval"
_LOOK_S = 1.0  # how often the link is read; a new index is loaded for seconds anyway
# Usage reports would leave the machine; direct ingress opens ports that nothing here calls; a loaded machine starts slowly; Serve's
# controller looks after its replicas ten times a second by default, whether or not anything has changed.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
}


class RayNotStarted(Exception):
    """The machine has no room for it, or is too busy."""


def allow_many_connections() -> None:
    """Every connection takes a file descriptor, and many systems allow a process 1,024 of them unless it asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Stop:
    """Set by the signals that end a program."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


def serve_alone(index: Path, config: RetrievalConfig, say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. IndexRefused, PortTaken or ValueError say what is wrong before anything starts."""
    manifest = _checked(index, config)
    for name, value in ENVIRONMENT.items():  # before anything imports Ray, which reads some of it then
        os.environ.setdefault(name, value)
    stay_on_this_machine()
    import ray
    from ray import serve

    from retrieval_service.app import check_http, deploy

    check_http(config)

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A Ray of its own: an address in the environment names a cluster that has other things to do.
    cpus = max(config.replicas * config.replica_cpus, os.cpu_count() or 1)
    try:
        ray.init(address="local", num_cpus=int(cpus) + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise RayNotStarted(f"Ray did not start on this machine: {str(error).splitlines()[0]}") from None
    try:
        served = index.resolve()
        deploy(served, config_of(manifest, config), APP)
        host = f"[{config.http_host}]" if ":" in config.http_host else config.http_host
        stop = Stop()  # after Ray has started, which takes these signals for itself
        say(f"{_said(manifest)} on http://{host}:{config.http_port} (/docs, /search, /retrieve, /mcp); end with Ctrl-C")
        while not stop.wait(_LOOK_S):
            served = _follow(index, served, config, say)
    finally:
        serve.shutdown()
        ray.shutdown()


def _follow(index: Path, served: Path, config: RetrievalConfig, say: Callable[[str], None]) -> Path:
    """What the link points to now. A refused index is remembered as seen, so that it is told once."""
    from retrieval_service.app import deploy

    now = index.resolve()
    if now == served:
        return served
    try:
        manifest = _checked(now, config)
        deploy(now, config_of(manifest, config), APP)
        say(f"{_said(manifest)}, taken from {now}")
    except IndexRefused as error:
        say(f"still serving {served}: {error}")
    return now


def _checked(index: Path, config: RetrievalConfig) -> IndexManifest:
    from retrieval_service.identity import expected_identity

    manifest = IndexManifest.read(index)
    manifest.require(expected_identity(config_of(manifest, config)), index)
    return manifest


def _said(manifest: IndexManifest) -> str:
    return f"index {manifest.index_hash[:12]} of {manifest.documents:,} documents"
