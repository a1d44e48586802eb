"""What the tests share: one Ray for all that need one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before anything imports them: one thread each, and nothing that asks other machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a loaded machine starts slowly
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # and its agent as well: after 30 s the raylet gives up
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

# A script that runs the tests in the background has interrupts ignored, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The cores are shared with others: how long one example takes says nothing about it.
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray for the whole session. Its CPUs are slots and not cores: actors that wait cost nothing."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
