"""The retrieval service while things change under load: another index, a dead replica, a dead gateway; and how outsiders ask it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import ray
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from retrieval_service.app import deploy, undeploy
from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex, IndexRefused
from retrieval_service.manifest import IndexManifest
from retrieval_service.messages import as_metrics
from retrieval_service.types import RetrievalUnavailable, SearchQuery, SearchResult
from tasks.questions import Document

pytestmark = pytest.mark.e2e

APP = "test-retrieval-serving"
TOKEN = "0123456789abcdef-token"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def build(folder: Path, word: str) -> str:
    documents = [Document(id=f"d{i}", title=f"Ward {i}", text=f"{word} finding {i} of ward {i % 7}") for i in range(200)]
    return HybridIndex.build(documents, folder, RetrievalConfig(dimensions=64)).index_hash


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    parent = tmp_path_factory.mktemp("swapped")
    build(parent / "old", "old"), build(parent / "new", "new")
    return parent / "old", parent / "new"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RetrievalConfig:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    return RetrievalConfig(
        dimensions=64, replica_cpus=0.5, cache_entries=64, deadline_s=60.0, http_port=free_port(), http_token_file=str(token)
    )


@pytest.fixture(scope="module")
def app(ray_session: Any) -> Iterator[str]:
    yield APP
    undeploy(APP)


def pid_of(deployment: str) -> int:
    """The process of an actor of Serve's, as Ray's own state tells it."""
    (pid,) = [
        actor["Pid"]
        for actor in ray._private.state.actors().values()
        if actor["State"] == "ALIVE" and APP in actor["Name"] and f"#{deployment}#" in actor["Name"]
    ]
    return int(pid)


def http(config: RetrievalConfig) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{config.http_port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
    )


@asynccontextmanager
async def load(ask: Callable[[int], Any], callers: int = 16) -> AsyncIterator[list[Any]]:
    """Callers that ask one query after another; yields the answers so far."""
    answers: list[Any] = []
    ended = asyncio.Event()

    async def caller(number: int) -> None:
        while not ended.is_set():
            answers.append(await ask(number))
            number += callers

    async with asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(caller(number))
        try:
            yield answers
        finally:
            ended.set()


async def more_than(answers: list[Any], count: int) -> None:
    async with asyncio.timeout(60):
        while len(answers) < count:  # noqa: ASYNC110  an event for every length would hide what is waited for
            await asyncio.sleep(0.02)


def test_another_index_is_taken_under_load_without_losing_or_mixing_anything(
    app: str, folders: tuple[Path, Path], config: RetrievalConfig
) -> None:
    old, new = (IndexManifest.read(folder).index_hash for folder in folders)
    client = RetrievalClient(deploy(folders[0], config, app), config)
    before = pid_of("Replica")

    async def ask(number: int) -> str:
        """Alternately one query through the handle, and forty over HTTP, which must all be answered by one index."""
        if number % 2:
            result = await client.search(SearchQuery(query=f"finding {number % 200}", k=1))
            assert result.hits
            return result.index_hash
        queries = [{"query": f"finding {(number + i) % 200}", "k": 1} for i in range(40)]
        async with http(config) as outside:
            answer = (await outside.post("/search/batch", json={"queries": queries})).raise_for_status().json()
        assert {result["index_hash"] for result in answer["results"]} == {answer["index_hash"]}
        word = {old: "old", new: "new"}[answer["index_hash"]]
        assert {result["hits"][0]["text"].split()[0] for result in answer["results"]} == {word}
        return str(answer["index_hash"])

    async def scenario() -> None:
        async with load(ask) as answers:
            await more_than(answers, 50)
            assert set(answers) == {old}
            await asyncio.to_thread(deploy, folders[1], config, app)
            swapped = len(answers)
            await more_than(answers, swapped + 100)
        assert set(answers) == {old, new} and set(answers[swapped + 16 :]) == {new}

        # One that is refused changes nothing.
        broken = folders[1].parent / "broken"
        build(broken, "broken")
        (broken / "dense.faiss").write_bytes((broken / "dense.faiss").read_bytes()[:-1] + b"!")
        async with load(ask) as answers:
            await more_than(answers, 20)
            with pytest.raises(IndexRefused, match=r"still served: .*dense.faiss is damaged"):
                await asyncio.to_thread(deploy, broken, config, app)
            await more_than(answers, len(answers) + 20)
        assert set(answers) == {new}

        (stats,) = await client.stats()
        assert stats.pid == before and stats.index_hash == new and stats.failed == stats.rejected == 0
        figures = as_metrics([stats])
        assert figures["retrieval/queries_per_s"] > 0 and figures["retrieval/p99_ms"] > 0 and figures["retrieval/dense_ms"] > 0

    asyncio.run(scenario())


def test_a_dead_replica_and_a_dead_gateway_lose_no_search(
    app: str, folders: tuple[Path, Path], config: RetrievalConfig
) -> None:
    client = RetrievalClient(deploy(folders[1], config, app), config)
    wanted = IndexManifest.read(folders[1]).index_hash

    async def ask(number: int) -> str:
        return (await client.search(SearchQuery(query=f"finding {number}", k=1))).index_hash

    async def over_http(number: int) -> str:
        """An outside client, which tries again where the connection or the service is away for a moment."""
        for _ in range(200):
            try:
                async with http(config) as outside:
                    answer = await outside.post("/search", json={"query": f"finding {number}", "k": 1})
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code != 503:
                return str(answer.raise_for_status().json()["index_hash"])
            await asyncio.sleep(0.1)
        raise AssertionError("the gateway did not come back")

    async def scenario() -> None:
        for asking, victim in ((ask, "Replica"), (over_http, "Gateway")):
            async with load(asking) as answers:
                await more_than(answers, 50)
                killed = pid_of(victim)
                os.kill(killed, signal.SIGKILL)
                await more_than(answers, len(answers) + 200)
            assert set(answers) == {wanted}
            assert pid_of(victim) != killed

    asyncio.run(scenario())


def test_after_failures_in_a_row_nothing_is_sent_until_a_probe_succeeds(
    app: str, folders: tuple[Path, Path], config: RetrievalConfig
) -> None:
    """The service is alive but does not answer in time; then it does."""
    slow = config.model_copy(update={"inject_delay_s": 0.6, "cache_entries": 0})
    handle = deploy(folders[1], slow, app)
    client = RetrievalClient(handle, slow.model_copy(update={"deadline_s": 0.2}))

    async def scenario() -> None:
        for number in range(5):
            await asyncio.gather(client.search(SearchQuery(query=f"slow {number}")), return_exceptions=True)
        await asyncio.sleep(0.05)  # the messages notice their deadlines at the same time as their callers
        assert client.breaker.is_open and client.counts["RetrievalTimeout"] == 5
        started = time.perf_counter()
        (refused,) = await asyncio.gather(client.search(SearchQuery(query="refused")), return_exceptions=True)
        assert type(refused) is RetrievalUnavailable and time.perf_counter() - started < 0.15
        await asyncio.to_thread(deploy, folders[1], config, app)
        found: Any = None
        async with asyncio.timeout(30):
            while not isinstance(found, SearchResult):
                await asyncio.sleep(0.1)
                (found,) = await asyncio.gather(client.search(SearchQuery(query="finding 3", k=1)), return_exceptions=True)
        assert not client.breaker.is_open and found.hits[0].id == "d3"

    asyncio.run(scenario())


def test_outsiders_who_know_nothing_but_a_protocol_get_the_right_documents(
    app: str, folders: tuple[Path, Path], config: RetrievalConfig
) -> None:
    deploy(folders[1], config, app)
    address = f"http://127.0.0.1:{config.http_port}"

    def search_r1(queries: list[str]) -> list[str]:
        """A rollout's view of the protocol: what it would paste into the prompt, for each query."""
        body = json.dumps({"queries": queries, "topk": 2, "return_scores": True}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}/retrieve", body, headers), timeout=60) as answer:
            found = json.load(answer)["result"]
        shown = []
        for documents in found:
            lines = [document["document"]["contents"].split("\n") for document in documents]
            shown.append(" ".join(f"Doc {n}(Title: {title}) {' '.join(text)}" for n, (title, *text) in enumerate(lines, 1)))
        return shown

    seven, nothing, nine = search_r1(["new finding 7 of ward 0", "", "new finding 9 of ward 2"])
    assert seven.startswith("Doc 1(Title: Ward 7) new finding 7 of ward 0 Doc 2(Title: ") and nothing == ""
    assert nine.startswith("Doc 1(Title: Ward 9) new finding 9 of ward 2")

    async def agent() -> None:
        signed = httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"})
        async with Client(streamable_http_client(f"{address}/mcp", http_client=signed)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"search", "read_document"}
            found = (await client.call_tool("search", {"query": "new finding 7 of ward 0", "k": 1})).structured_content
            assert found["hits"][0]["id"] == "d7" and found["index_hash"] == IndexManifest.read(folders[1]).index_hash
            read = (await client.call_tool("read_document", {"document_id": "d9"})).structured_content
            assert read["text"] == "new finding 9 of ward 2"
            assert (await client.call_tool("search", {"query": "a\0b"})).is_error

    asyncio.run(agent())
    for path in ("/search", "/mcp", "/retrieve", "/docs"):
        assert httpx.get(address + path).status_code == 401


def test_served_alone_it_follows_its_link_and_ends_with_its_ray(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = (IndexManifest.read(folder).index_hash for folder in folders)
    link, port = tmp_path / "current", free_port()
    link.symlink_to(folders[0])
    command = [sys.executable, "-m", "medr3.cli", "retrieval", "serve", str(link), "--port", str(port)]
    with (tmp_path / "said").open("w+") as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: hash_at(port) == old, server, tmp_path / "said")
            (tmp_path / "next").symlink_to(folders[1])
            (tmp_path / "next").rename(link)
            wait_until(lambda: hash_at(port) == new, server, tmp_path / "said")
            again = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
            assert (
                again.returncode == 2
                and f"127.0.0.1:{port} cannot be bound" in again.stderr
                and "Traceback" not in again.stderr
            )
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
        said.seek(0)
        lines = said.read().splitlines()
    assert lines[0].startswith(f"index {old[:12]} of 200 documents on http://127.0.0.1:{port}"), lines
    assert any(line.startswith(f"index {new[:12]} of 200 documents, taken from") for line in lines), lines
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))  # nobody holds it any more


def hash_at(port: int) -> str:
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/search", json={"query": "finding 3"}, timeout=10)
    except httpx.TransportError:
        return ""
    return str(answer.json()["index_hash"]) if answer.status_code == 200 else ""


def wait_until(reached: Callable[[], bool], server: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + 120
    while not reached():
        assert server.poll() is None and time.monotonic() < until, said.read_text()
        time.sleep(0.2)
