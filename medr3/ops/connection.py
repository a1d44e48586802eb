"""A client of a cluster's job server; everything that can be wrong with an address or a token is one clear line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from medr3.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# They name what is sent, and every file that is not; the second sets a level of its own.
QUIETENED = ("ray", "ray.dashboard.modules.dashboard_sdk")
CONNECT_TIMEOUT_S = 5.0  # a right address answers in milliseconds; a wrong one should not cost minutes


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server, or one clear line."""
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise UserError(f"--address {address}: write it like http://127.0.0.1:8265, the address of the cluster's dashboard")
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nothing answers ({error.strerror or error}): is the cluster up, and the port forwarded"
            " (ray dashboard cluster.yaml, or kubectl port-forward service/medr3-head-svc 8265)?"
        ) from None
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in QUIETENED:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(f"--address {address}: {_refusal(error.message)}") from None
    except Exception as error:  # whatever else listens there answers in ways of its own
        raise UserError(f"--address {address}: this is no Ray dashboard ({first_line(error)})") from None


@contextmanager
def talking(address: str) -> Iterator[None]:
    """What may go wrong later than at the first word: a token that expires meanwhile, a head that goes away."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        import aiohttp
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        if isinstance(error, AuthenticationError):
            raise UserError(f"--address {address}: {_refusal(error.message)}") from None
        if isinstance(error, RequestException | aiohttp.ClientError | ConnectionError):
            why = f"the cluster stopped answering ({first_line(error)}): the run itself goes on; try again"
            raise UserError(f"--address {address}: {why}") from None
        raise


def token_source() -> str:
    """Where Ray takes this machine's token from, in its own order; empty: there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "the environment variable RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return str(path) if path.is_file() and path.stat().st_size else ""


def first_line(text: object) -> str:
    """A text's first words, short enough for one line."""
    return next((line.strip()[:300] for line in str(text).splitlines() if line.strip()), "")


def _refusal(message: str) -> str:
    """Ray says 401 where no token came, and 403 where one came that it does not know."""
    source = token_source()
    if "Authentication failed" in message:
        return (
            f"the cluster refuses the token from {source or 'this machine'}: it is wrong or has expired: copy the cluster's"
            " present one there (cluster.yaml: ~/.ray/auth_token of the head)"
        )
    if source and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"the cluster asks for a token, and {source} was not sent: set RAY_AUTH_MODE=token"
    return (
        "the cluster asks for a token, and this machine has none: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file"
        " that holds the cluster's token"
    )
