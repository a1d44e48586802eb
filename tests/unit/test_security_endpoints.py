"""Where settings may send requests, and what an answer may do: real servers on loopback that redirect, flood, pack and repeat."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from actors.tools import ToolFailed
from actors.tools_config import JsonApiConfig
from actors.tools_json_api import JsonApi
from medr3.errors import UserError
from medr3.evaluation.endpoint import EndpointConfig, EndpointFailed, EndpointPolicy
from medr3.evaluation.written import WrittenText
from medr3.ops.jobs import submit
from medr3.validation import describe_validation
from rewards.config import JudgeConfig
from rewards.findings import JudgeFailed
from rewards.judge import Judge
from rewards.judge_prompts import answer_verdict
from security import addresses
from security.answers import MOST_BYTES
from tasks.questions import Question

KEY = "canary-4b1f9d0c7a"
BOMB = gzip.compress(bytes(32 << 20), 1)
QUESTION = Question.model_validate({"id": "q", "text": "what?", "kind": "text", "gold": "iron"})

FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.169.254.:80/v1",
    "http://2852039166/v1",
    "http://0xa9fea9fe/v1",
    "http://0251.0376.0251.0376/v1",
    "http://169.254.43518/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://[64:ff9b::a9fe:a9fe]/v1",
    "http://[fe80::1]/v1",
    "http://[fd00:ec2::254]/v1",
    "http://100.100.100.200/v1",
    "http://metadata.google.internal/v1",
    "http://METADATA/v1",
    "http://0.0.0.0/v1",
    "http://[::]/v1",
    "http://224.0.0.1/v1",
    "http://user@h/v1",
    "http://h/v1?api_key=abc",
    "http://[fd00:ec2::23]/v1",
    "http://[fd20:ce::254]/v1",
    "http://[fd00:42::42]/v1",
    "ftp://h/v1",
    "file:///etc/passwd",
    "gopher://h/",
    "http://h:99999/v1",
    "http:///v1",
]
SETTINGS: list[Callable[[str], Any]] = [
    lambda url: JudgeConfig(url=url, model="m"),
    lambda url: EndpointConfig(url=url, model="m"),
    lambda url: JsonApiConfig(url=f"{url}{'&' if '?' in url else '?'}q={{query}}"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=["judge", "endpoint", "json_api"])
@pytest.mark.parametrize("url", FORBIDDEN)
def test_what_no_setting_may_name(url: str, setting: Callable[[str], Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        setting(url)
    (line,) = describe_validation(refused.value, type(refused.value))
    assert "abc" not in line and "\n" not in line


@pytest.mark.parametrize("setting", SETTINGS, ids=["judge", "endpoint", "json_api"])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "https://judge.example/v1", "http://10.2.3.4/v1"]
)
def test_servers_of_ones_own_are_allowed(url: str, setting: Callable[[str], Any]) -> None:
    setting(url)


def test_the_operator_of_a_machine_may_allow_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(addresses.ALLOW, "other.example, 169.254.7.7")
    JudgeConfig(url="http://169.254.7.7/v1", model="m")
    with pytest.raises(ValidationError):
        JudgeConfig(url="http://169.254.7.8/v1", model="m")


@pytest.mark.parametrize("key", ["sk-0123456789abcdefghij", "hf_0123456789abcdefghij", "not a name"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(key: str) -> None:
    for model, fields in (
        (JudgeConfig, {"url": "http://h/v1", "model": "m", "api_key_env": key}),
        (EndpointConfig, {"url": "http://h/v1", "model": "m", "api_key_env": key}),
        (JsonApiConfig, {"url": "http://h/{query}", "header_variables": {"X-Key": key}}),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(fields)
        (line,) = describe_validation(refused.value, model)
        assert "must name the environment variable" in line and key not in line


class Server(BaseHTTPRequestHandler):
    """Does to a client what its first path says, and counts who came."""

    seen: list[str]
    elsewhere = ""
    endless_bytes = 0

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.path.split("/")[1].partition("?")[0]
        type(self).seen.append(self.path)
        packed = kind == "bomb"
        content = {
            "bomb": lambda: BOMB,
            "deep": lambda: b"[" * 200_000,
            "echo": lambda: json.dumps(
                {
                    "hits": [{"text": str(dict(self.headers)), "id": self.headers.get("X-Key", "")}],
                    "headers": dict(self.headers),
                }
            ).encode(),
        }.get(kind, lambda: b"{}")()
        self.send_response({"moved": 307, "echo": 200 if self.headers.get("X-Key") else 401}.get(kind, 200))
        if kind == "moved":
            self.send_header("Location", type(self).elsewhere)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        if kind != "endless":
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self.end_headers()
        try:
            while True:
                self.wfile.write(b'"' + b"x" * (1 << 16))
                type(self).endless_bytes += 1 << 16
        except OSError:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    kind = type("Counting", (Server,), {"seen": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}", kind
    served.shutdown()
    thread.join()
    served.server_close()


def judged(url: str, **settings: Any) -> int:
    async def once() -> int:
        fields = {"url": url, "model": "m", "attempts": 2, "first_pause_s": 0, "concurrency": 1} | settings
        async with Judge(JudgeConfig.model_validate(fields)) as judge:
            return await judge.ask(answer_verdict(QUESTION, "iron", rare_disease=False))

    return asyncio.run(once())


def asked(url: str) -> None:
    async def once() -> None:
        async with EndpointPolicy(EndpointConfig(url=url, model="m", attempts=1, timeout_s=20), WrittenText()):
            pass

    asyncio.run(once())


def searched(url: str, **settings: Any) -> Any:
    async def once() -> Any:
        tool = JsonApi(JsonApiConfig(url=url + "?q={query}", results="hits", **settings))
        try:
            return await tool.call("iron", QUESTION)
        finally:
            await tool.close()

    return asyncio.run(once())


ASKING = [(judged, JudgeFailed), (asked, EndpointFailed), (searched, ToolFailed)]


@pytest.mark.parametrize(("ask", "failure"), ASKING, ids=["judge", "endpoint", "json_api"])
@pytest.mark.parametrize("kind", ["bomb", "endless", "deep", "moved"])
def test_answers_that_are_none(ask: Any, failure: Any, kind: str, server: tuple[str, type[Server]]) -> None:
    """A packed, an endless and a deep answer, and one that points elsewhere, each end in the caller's own failure."""
    url, handler = server
    handler.elsewhere = f"{url.replace('127.0.0.1', 'localhost')}/stolen"
    with pytest.raises(failure) as failed:
        ask(f"{url}/{kind}")
    assert len(str(failed.value).splitlines()) == 1
    assert not any("stolen" in path for path in handler.seen), "a redirect was followed to another host"
    assert handler.endless_bytes < 4 * MOST_BYTES, "the rest of an endless answer is not read"


@pytest.mark.parametrize(("ask", "failure"), ASKING, ids=["judge", "endpoint", "json_api"])
def test_a_name_that_stands_for_a_forbidden_address_gets_no_request(
    ask: Any, failure: Any, server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at the setting sees a harmless name; the look at the connection sees whom it reached."""
    url, handler = server
    monkeypatch.setattr(addresses, "METADATA_ADDRESSES", frozenset({addresses.as_address("127.0.0.1")}))
    with pytest.raises(failure, match=r"127\.0\.0\.1 is the address of a metadata service"):
        ask(f"{url.replace('127.0.0.1', 'localhost')}/v1")
    assert handler.seen == []


def test_a_server_that_repeats_a_request_writes_no_key_into_rows_or_lines(
    server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server
    monkeypatch.setenv("A_VARIABLE_OF_ANY_NAME", KEY)
    (hit,) = searched(f"{url}/echo", header_variables={"X-Key": "A_VARIABLE_OF_ANY_NAME"}).hits
    assert "[secret]" in hit.text and "[secret]" in hit.id and KEY not in hit.text + hit.id
    with pytest.raises(EndpointFailed, match="status 401") as failed:
        asyncio.run(
            EndpointPolicy(
                EndpointConfig(url=f"{url}/echo", model="m", attempts=1, api_key_env="A_VARIABLE_OF_ANY_NAME"), WrittenText()
            ).__aenter__()
        )
    assert "[secret]" in str(failed.value) and KEY not in str(failed.value)


def test_a_key_with_a_line_s_end_is_used_and_not_shown(
    server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `export KEY=$(cat file)` takes it off and a container's secrets do not; an HTTP library's error would show the header."""
    url, _ = server
    monkeypatch.setenv("A_VARIABLE_OF_ANY_NAME", f"{KEY}\n")
    (hit,) = searched(f"{url}/echo", header_variables={"X-Key": "A_VARIABLE_OF_ANY_NAME"}).hits
    assert "[secret]" in hit.text and KEY not in hit.text
    for no_header in (f"{KEY}\nX-Other: 1", f"{KEY}é", " "):
        monkeypatch.setenv("A_VARIABLE_OF_ANY_NAME", no_header)
        with pytest.raises(ValueError, match="A_VARIABLE_OF_ANY_NAME holds no key") as refused:
            searched(f"{url}/echo", header_variables={"X-Key": "A_VARIABLE_OF_ANY_NAME"})
        assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "override", [f"run.name={KEY}", "run.name=sk-0123456789abcdefghij", f"rollout.judge.url=http://h/{KEY}"]
)
def test_submit_sends_no_secret_as_a_word_of_its_command(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from medr3.config import load
    from medr3.ops.jobs import checkout

    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    demo = checkout() / "configs" / "demo.yaml"
    with pytest.raises(UserError, match="readable on the dashboard") as refused:
        submit(demo, load(demo, []), "http://127.0.0.1:9", [override])
    assert KEY not in str(refused.value) and "sk-" not in str(refused.value)
