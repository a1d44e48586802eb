"""Retrieval alone, as an application that Ray Serve builds from a file: deploy/kuberay/rayservice.yaml.

Within a run the service needs no HTTP (`retrieval_service/app.py`); here it stands behind Serve's own proxy, so that a load balancer
finds it on every node. The API and the guard before it are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig
from retrieval_service.http_api import make_api
from retrieval_service.http_guard import App, Guard, read_token
from retrieval_service.replica import Replica, settings_of

REPLICA = "Replica"


def application(arguments: dict[str, Any]) -> Application:
    """`arguments` are settings of retrieval; `index` must be set, and `http_token_file`, for a service is there for others.

    How many replicas and gateways there are, and on which nodes, says the file that names this function.
    """
    config = RetrievalConfig.model_validate(arguments)
    if not config.index or not config.http_token_file:
        raise ValueError(
            "arguments: index and http_token_file must be set: a folder of a built index, and a file with the token"
        )
    replica = serve.deployment(name=REPLICA, user_config=settings_of(Path(config.index), config))(Replica).bind()

    def api() -> App:
        """Made in the gateway's own process, where a handle of the replicas can be had."""
        client = RetrievalClient(serve.get_deployment_handle(REPLICA), config)
        return Guard(make_api(client, config.mode, config.max_queued, local=False), read_token(config.http_token_file))

    gateway: Any = serve.ingress(api)()
    return serve.deployment(name="Gateway")(gateway).bind(replica)
