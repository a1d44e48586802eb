"""`ray start` for a node beside a head that listens on the loopback alone: Ray would look for it at the machine's own address."""

from __future__ import annotations

from ray._private import services
from ray.scripts.scripts import main

if __name__ == "__main__":
    services.resolve_ip_for_localhost = lambda host: host
    main()
