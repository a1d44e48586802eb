"""A real Prometheus on the loopback, from the files that `medr3 dashboard export` writes; ended by its process id."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.ray_head import free_ports

# A selector with its labels; functions, label names and numbers are none.
SELECTOR = re.compile(r"(?:ray_\w+|ALERTS)(?:\{[^}]*\})?")


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"install {name}, on Debian: apt-get install prometheus"
    return path


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def series(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """What a panel would draw of that time."""
        found = self.get("query_range", query=expr, start=start, end=end, step=max(1.0, (end - start) / 500))["result"]
        return [one for one in found if any(value not in ("NaN", "+Inf", "-Inf") for _, value in one["values"])]

    def until(self, true: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
            time.sleep(0.5)
        return found

    def targets(self) -> dict[str, str]:
        return {target["scrapeUrl"]: target["health"] for target in self.get("targets")["activeTargets"]}


@contextmanager
def prometheus(config: Path, data: Path) -> Iterator[Prometheus]:
    (port,) = free_ports(1)
    arguments = [f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{port}"]
    data.mkdir(parents=True)
    with (data / "log").open("w") as log:
        process = subprocess.Popen([tool("prometheus"), *arguments, "--log.level=warn"], stdout=log, stderr=subprocess.STDOUT)
        try:
            server = Prometheus(f"http://127.0.0.1:{port}")
            server.until(lambda: _ready(server.url), 30, "Prometheus is ready")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
