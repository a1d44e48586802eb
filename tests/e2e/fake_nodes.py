"""Ray's fake nodes, each with a folder of its own for what jobs bring along, as machines of their own have.

As Ray makes them they share one: every node that comes unpacks a job's files there anew, and deletes them under those that use them.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class OwnFolders(FakeMultiNodeProvider):
    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            own = partial(RayParams, runtime_env_dir_name=f"runtime_resources-{self._next_node_id + 1}")
            with patch("ray._private.parameter.RayParams", own):
                super()._create_node_with_resources_and_labels(*arguments)
