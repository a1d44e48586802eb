"""A Ray of this machine alone: none of its ports can be reached from another, and its token can be read by its owner alone.

Whoever can talk to a Ray runs code in it. By default a Ray on Linux binds dozens of ports to every interface, behind a token that
it writes into a file which every user of the machine may read.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

# Ray's own name for it, from the systems where it is the default: a node's address is 127.0.0.1, and what serves it binds to that.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
PRIVATE = 0o600
_OTHERS = 0o077


def stay_on_this_machine() -> None:
    """Called before `ray.init` starts a Ray; never before one joins a cluster, whose nodes must reach each other."""
    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)  # for the processes that Ray starts
    if os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0":
        _take_loopback_as_it_is()
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        keep_token_private(Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "") or Path.home() / ".ray" / "auth_token"))


def find_on_this_machine(address: str) -> None:
    """Called before `ray.init` joins a Ray at this address, or whichever runs here (`auto`).

    Otherwise Ray replaces 127.0.0.1 by the machine's address for others, where a Ray of this machine alone does not answer.
    """
    host = address.rpartition(":")[0].strip("[]")
    if address in ("", "auto") or host in ("localhost", "::1") or host.startswith("127."):
        _take_loopback_as_it_is()


def _take_loopback_as_it_is() -> None:
    from ray._private import ray_constants  # which read the environment when it was imported, perhaps long ago

    ray_constants.ENABLE_RAY_CLUSTER = False


def keep_token_private(path: Path) -> None:
    """Makes Ray's token where there is none, before Ray makes one that everybody may read; closes one that is open.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keep_token_private(Path(folder, "ray", "auth_token"))
        ...     oct(Path(folder, "ray", "auth_token").stat().st_mode & 0o777)
        '0o600'
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    except FileExistsError:
        found = path.stat()
        if found.st_mode & _OTHERS and found.st_uid == os.getuid():
            with suppress(OSError):  # mounted for reading, as clusters hand it out: whoever mounts it decides
                path.chmod(PRIVATE)
        return
    except OSError:  # Ray says better what it cannot write
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
