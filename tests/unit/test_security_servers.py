"""Ports: each server of ours stays on loopback, or asks for a token; a Ray of this machine keeps to this machine."""

from __future__ import annotations

import ast
import asyncio
import http.client
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from medr3.cli import app
from medr3.cli_common import load_config
from medr3.errors import UserError
from medr3.observe.serving import Dashboard
from medr3.ops.retrieval_app import application
from retrieval_service.config import RetrievalConfig
from retrieval_service.http_guard import Guard, read_token
from security.local_ray import find_on_this_machine, keep_token_private

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "bench", "learner", "medr3", "retrieval_service", "rewards", "security", "tasks", "trajectories")
EVERYWHERE = ["0.0.0.0", "::", "", "192.0.2.7", "some-host"]


# --- every server of ours, asked to listen everywhere without a token


@pytest.mark.parametrize("host", EVERYWHERE)
def test_retrieval_serve_refuses_in_one_line(host: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medr3.cli", "retrieval", "serve", str(tmp_path), "--host", host],
        capture_output=True, text=True, cwd=ROOT, check=False,
    ) if host == "0.0.0.0" else CliRunner().invoke(app, ["retrieval", "serve", str(tmp_path), "--host", host])  # fmt: skip
    said = done.stderr.strip() if isinstance(done, subprocess.CompletedProcess) else str(done.exception)
    assert len(said.splitlines()) == 1 and "can be reached from other machines: set http_token_file" in said
    assert isinstance(done.stdout, str) and (getattr(done, "returncode", 2) == 2)


@pytest.mark.parametrize("host", EVERYWHERE)
def test_a_run_refuses_in_one_line(host: str) -> None:
    with pytest.raises(UserError, match="can be reached from other machines: set http_token_file") as refused:
        load_config(ROOT / "configs" / "demo.yaml", ["retrieval.http_port=8000", f"retrieval.http_host='{host}'"])
    assert len(str(refused.value).splitlines()) == 1


def test_the_application_of_a_cluster_refuses_without_a_token_whatever_it_binds_to() -> None:
    with pytest.raises(ValueError, match="http_token_file must be set"):
        application({"index": "somewhere"})


def test_the_dashboard_can_be_told_no_other_host(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "training"}')
    refused = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--host", "0.0.0.0"])
    assert refused.exit_code == 2 and "No such option" in refused.output
    dashboard = Dashboard(tmp_path, 0)
    try:
        assert dashboard._server.socket.getsockname()[0] == "127.0.0.1"
        for host, status in (("127.0.0.1", 200), ("localhost:1", 200), ("attacker.example", 403), ("127.0.0.1.example", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", dashboard.port)
            connection.request("GET", "/", headers={"Host": host})
            assert connection.getresponse().status == status, host
            connection.close()
    finally:
        dashboard.close()


def test_nothing_else_of_ours_listens() -> None:
    """A new server has to be written down here and in docs/security.md, with what keeps strangers out of it."""
    opening = {
        "socket.create_server", "asyncio.start_server", "uvicorn.run", "uvicorn.Server", "uvicorn.Config", "ThreadingHTTPServer",
        "HTTPServer", "start_http_server", "web.run_app", "web.TCPSite", "_Server", "grpc.server", "TCPServer",
    }  # fmt: skip
    found = set()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)) if re.search(r"erver|uvicorn|web\.|\.listen", source) else ():
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    if name in opening or name.endswith(".listen"):
                        found.add((str(path.relative_to(ROOT)), name))
    assert found == {
        ("bench/judge.py", "web.TCPSite"),  # on loopback, while a benchmark runs
        ("bench/retrieval_peer.py", "uvicorn.run"),
        ("medr3/observe/serving.py", "_Server"),
        ("retrieval_service/gateway.py", "socket.create_server"),
        ("retrieval_service/gateway.py", "uvicorn.Config"),
        ("retrieval_service/gateway.py", "uvicorn.Server"),
    }


# --- tokens


@pytest.mark.parametrize("content", ["", "short", "two words that are long enough", "a" * 15, "ünïcode-token-long-enough"])
def test_a_token_that_keeps_nobody_out_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ValueError, match="http_token_file") as refused:
        read_token(str(path))
    assert not content or content not in str(refused.value), "the line does not show the token"


def test_a_token_is_never_an_argument() -> None:
    from typer.main import get_command

    def options(command: Any, way: str) -> list[tuple[str, str]]:
        inner = [found for name, each in getattr(command, "commands", {}).items() for found in options(each, f"{way} {name}")]
        return inner + [(way, option) for parameter in command.params for option in parameter.opts]

    secret = [
        found for found in options(get_command(app), "medr3") if found[1] in ("--token", "--api-key", "--key", "--password")
    ]
    assert secret == []


def test_tokens_are_compared_whole_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import retrieval_service.http_guard as module

    compared: list[tuple[bytes, bytes]] = []
    real = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))

    async def status(path: str, authorization: bytes) -> int:
        sent: list[Any] = []

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        scope = {"type": "http", "path": path, "headers": [(b"authorization", authorization)]}
        await Guard(inner, "t" * 32)(scope, receive, send)
        return int(sent[0]["status"])

    for authorization, wanted in (
        (b"Bearer " + b"t" * 32, 200),
        (b"Bearer " + b"t" * 31, 401),
        (b"Bearer " + b"t" * 33, 401),
        (b"", 401),
    ):
        assert asyncio.run(status("/search", authorization)) == wanted
    assert len(compared) == 3, "what is no bearer token is not compared at all"


def test_what_is_no_http_does_not_pass_the_guard() -> None:
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it came in")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(inner, "t" * 32)({"type": "websocket", "path": "/health", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_rays_token_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    keep_token_private(path)
    made = path.read_text()
    assert len(made) == 64 and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)  # as Ray itself writes it
    keep_token_private(path)
    assert path.read_text() == made and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379"])
def test_a_ray_of_this_machine_is_joined_where_it_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself Ray takes the machine's address for others in place of loopback, and waits there for ever."""
    from ray._private import ray_constants, services

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    find_on_this_machine("192.0.2.7:6379")
    assert ray_constants.ENABLE_RAY_CLUSTER is True, "a cluster's address is nothing of this machine"
    find_on_this_machine(address)
    assert services.canonicalize_bootstrap_address(address) == "127.0.0.1:6379"


def test_http_settings_are_looked_at_together() -> None:
    with pytest.raises(ValidationError):
        RetrievalConfig(http_port=1, http_host="0.0.0.0")
    RetrievalConfig(http_port=1, http_host="127.0.0.1")
    RetrievalConfig(http_port=1, http_host="0.0.0.0", http_token_file="token")


def test_on_kubernetes_only_ports_that_ask_for_a_token_are_open_to_all() -> None:
    folder = ROOT / "deploy" / "kuberay"
    policy = yaml.safe_load((folder / "network.yaml").read_text(encoding="utf-8"))["spec"]
    every_pod = {"matchExpressions": [{"key": "medr3/group", "operator": "Exists"}]}
    assert policy["podSelector"] == every_pod
    assert [rule["ports"] for rule in policy["ingress"] if "from" not in rule] == [
        [{"port": 8265, "protocol": "TCP"}, {"port": 8000, "protocol": "TCP"}]
    ]
    assert {"from": [{"podSelector": every_pod}]} in policy["ingress"]
    for name in ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml"):
        manifest = (folder / name).read_text(encoding="utf-8")
        assert manifest.count("labels: {medr3/group: ") == manifest.count(" containers:") > 0, name
