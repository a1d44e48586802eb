"""HTTP and MCP over a real index: the protocols, who may ask, and requests that make no sense."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from mcp import Client
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from typer.testing import CliRunner

from medr3.cli import app
from medr3.errors import UserError
from retrieval_service.answering import Answering
from retrieval_service.cache import CacheKey
from retrieval_service.config import RetrievalConfig
from retrieval_service.http_api import Bound, Busy, make_api
from retrieval_service.http_guard import Guard, read_token
from retrieval_service.http_messages import MOST_QUERIES, AskedQuery
from retrieval_service.index import HybridIndex
from retrieval_service.mcp_endpoint import mcp_app
from retrieval_service.types import Filters, RetrievalRejected, RetrievalTimeout, SearchQuery, SearchResult
from tasks.questions import Document
from tests.local_searcher import LocalSearcher

DOCUMENTS = [
    Document(id="pmid/1", text="Metformin lowers glucose.", title="Metformin", collection="a", evidence_level=1, year=2020),
    Document(id="pmid/2", text="Aspirin thins the blood.", collection="a"),
    Document(id="pmid/3", text="IL-6 rises in sepsis.", title="Cytokines", collection="b", evidence_level=4),
]
TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Answering:
    folder = tmp_path_factory.mktemp("http") / "index"
    config = RetrievalConfig(dimensions=64)
    HybridIndex.build(DOCUMENTS, folder, config)
    return Answering(HybridIndex.load(folder, config), cache_entries=100)


@pytest.fixture(scope="module")
def api(answering: Answering) -> FastAPI:
    return make_api(LocalSearcher(answering), "hybrid", 64, local=True)


def ask(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


def test_a_search_finds_and_says_from_which_index(api: FastAPI, answering: Answering) -> None:
    found = ask(api, "POST", "/search", json={"query": "glucose", "k": 1})
    assert found.status_code == 200 and found.headers["content-type"] == "application/json"
    assert [hit["id"] for hit in found.json()["hits"]] == ["pmid/1"]
    assert found.json()["hits"][0]["evidence_level"] == 1 and found.json()["index_hash"] == answering.index.index_hash
    assert ask(api, "GET", "/documents/pmid/3").json()["text"] == "IL-6 rises in sepsis."
    missing = ask(api, "GET", "/documents/pmid/9")
    assert (missing.status_code, missing.json()["error"]) == (404, "NotFound")
    assert ask(api, "GET", "/health").json() == {"status": "ok"}
    assert ask(api, "GET", "/stats").json()[0]["index_hash"] == answering.index.index_hash


def test_a_batch_is_of_one_index_and_one_bad_query_is_a_problem_in_its_place(api: FastAPI) -> None:
    queries = [{"query": "sepsis", "k": 1}, {"query": "sepsis", "collection": "z"}]
    answer = ask(api, "POST", "/search/batch", json={"queries": queries}).json()
    assert answer["results"][0]["hits"][0]["id"] == "pmid/3"
    assert answer["results"][0]["index_hash"] == answer["index_hash"]
    assert answer["results"][1] == {"error": "UnknownCollection", "detail": "collection 'z' is not in the index"}
    alone = ask(api, "POST", "/search/batch", json={"queries": queries[1:]})
    assert alone.status_code == 404


def test_search_r1s_protocol_word_for_word(api: FastAPI) -> None:
    asked = {"queries": ["glucose", "sepsis"], "topk": 1, "return_scores": True}
    glucose, sepsis = ask(api, "POST", "/retrieve", json=asked).json()["result"]
    assert glucose[0]["document"] == {"id": "pmid/1", "contents": "Metformin\nMetformin lowers glucose."}
    assert sepsis[0]["score"] > 0
    plain = ask(api, "POST", "/retrieve", json={"queries": ["blood"], "topk": None}).json()["result"]
    assert plain[0][0] == {"id": "pmid/2", "contents": "pmid/2\nAspirin thins the blood."}  # clients take line 1 for the title
    # Its trainer sends the whole batch, also where nobody searches, and what stands between empty tags.
    assert ask(api, "POST", "/retrieve", json={"queries": []}).json() == {"result": []}
    everything = "metformin glucose aspirin blood sepsis"
    mixed = ask(api, "POST", "/retrieve", json={"queries": ["", everything]}).json()["result"]
    assert [len(found) for found in mixed] == [0, 3]  # three documents, where nothing else is asked for
    assert ask(api, "POST", "/retrieve", json={"queries": ["", "  "]}).status_code == 422
    many = ask(api, "POST", "/retrieve", json={"queries": ["glucose", "sepsis", " "] * 500, "topk": 1})
    assert [found[0]["id"] if found else "" for found in many.json()["result"]] == ["pmid/1", "pmid/3", ""] * 500


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/search", {"query": ""}, "at least 1 character"),
        ("/search", {"query": " \t\n"}, "white space asks nothing"),
        ("/search", {"query": "a" * 1_000_000}, "at most 10000 characters"),
        ("/search", {"query": "a", "k": 0}, "k: Input should be greater than or equal to 1"),
        ("/search", {"query": "a", "k": -1}, "k: Input should be greater than or equal to 1"),
        ("/search", {"query": "a", "k": 1_000_000}, "k: Input should be less than or equal to 100"),
        ("/search", {"query": "a\0b"}, "control character U+0000 at position 1"),
        ("/search", {"query": "a\x1b[31m"}, "control character U+001B"),
        ("/search", {"query": ["a"]}, "query: Input should be a valid string"),
        ("/search", {"query": "a", "mode": "guess"}, "mode"),
        ("/search", {"query": "a", "filters": {"author": "me"}}, "filters.author: Extra inputs are not permitted"),
        ("/search", {"query": "a", "filters": {"year_from": 2021, "year_to": 2020}}, "no document could be found"),
        ("/search", {"query": "a", "filters": {"evidence_level": 7}}, "filters.evidence_level"),
        ("/search", {"query": "a", "vector": [1.0]}, "vector: Extra inputs are not permitted"),
        ("/search/batch", {"queries": []}, "queries"),
        ("/search/batch", {"queries": [{"query": "a"}] * (MOST_QUERIES + 1)}, f"at most {MOST_QUERIES} items"),
        ("/retrieve", {"queries": ["a"], "topk": 0}, "topk"),
        ("/retrieve", {"queries": ["a\x00"]}, "queries.0: Value error, control character U+0000"),
        ("/retrieve", {"queries": "a"}, "queries: Input should be a valid list"),
        ("/retrieve", {}, "queries: Field required"),
    ],
)
def test_what_makes_no_sense_is_422_and_a_short_sentence(api: FastAPI, path: str, body: Any, said: str) -> None:
    answer = ask(api, "POST", path, json=body)
    assert answer.status_code == 422 and answer.json()["error"] == "InvalidRequest"
    assert said in answer.json()["detail"] and len(answer.content) < 1000


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"query": NaN}', 422),
        (b'{"query": "a", "k": NaN}', 422),
        (b'{"query": "\\ud800"}', 422),  # half of a surrogate pair: no text at all
        (b'{"query": "a", "collection": "\\udfff"}', 422),
        (b'{"query": "\xff"}', 400),
        (b"{", 422),
        (b"[" * 100_000, 400),
        (b"", 422),
    ],
)
def test_bytes_that_are_no_request(api: FastAPI, content: bytes, status: int) -> None:
    answer = ask(api, "POST", "/search", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and set(answer.json()) == {"error", "detail"}


def test_failures_have_their_statuses(answering: Answering) -> None:
    class Failing(LocalSearcher):
        async def search(self, query: SearchQuery) -> SearchResult:
            raise {"full": RetrievalRejected, "late": RetrievalTimeout}[query.query]("why")

    api = make_api(Failing(answering), "hybrid", 64, local=True)
    full, late = (ask(api, "POST", "/search", json={"query": query}) for query in ("full", "late"))
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert (late.status_code, late.json()) == (504, {"error": "RetrievalTimeout", "detail": "why"})


def test_over_the_bound_is_429_and_for_search_r1s_clients_503(answering: Answering) -> None:
    class Slow(LocalSearcher):
        async def search_together(self, queries: Any) -> Any:
            await asyncio.sleep(0.2)
            return await super().search_together(queries)

    api = make_api(Slow(answering), "hybrid", 4, local=True)

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1") as client:
            first = asyncio.create_task(
                client.post("/retrieve", json={"queries": ["sepsis"] * 9})
            )  # larger than the bound, alone
            await asyncio.sleep(0.05)
            ours = client.post("/search", json={"query": "sepsis"})
            theirs = client.post("/retrieve", json={"queries": ["sepsis"]})
            answers = list(await asyncio.gather(ours, theirs))
            return [await first, *answers, await client.post("/search", json={"query": "sepsis"})]

    first, ours, theirs, after = asyncio.run(at_once())
    assert [each.status_code for each in (first, ours, theirs, after)] == [200, 429, 503, 200]
    assert ours.headers["retry-after"] == theirs.headers["retry-after"] == "1"
    assert "9 queries are waiting already, the bound is 4" in ours.json()["detail"]


def test_who_is_refused_is_told_how_long_the_queue_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))  # every look at it is a second later
    monkeypatch.setattr("retrieval_service.http_api.time.monotonic", lambda: float(next(clock)))
    bound = Bound(10)
    for _ in range(3):
        with bound.room_for(1):
            pass
    with bound.room_for(10), pytest.raises(Busy) as refused, bound.room_for(1):
        pass
    assert 10 <= refused.value.retry_after_s <= 30  # ten wait, and about one a second was answered


def test_the_bound_is_given_back_however_a_request_ends() -> None:
    bound = Bound(1)
    with pytest.raises(KeyError), bound.room_for(1):
        raise KeyError
    with bound.room_for(1), pytest.raises(RetrievalRejected), bound.room_for(1):
        pass


def test_a_token_is_needed_where_one_is_set(api: FastAPI) -> None:
    guarded = Guard(api, TOKEN)
    body = {"query": "glucose"}
    refused = ask(guarded, "POST", "/search", json=body)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    for wrong in ("Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"):
        assert ask(guarded, "POST", "/search", json=body, headers={"Authorization": wrong}).status_code == 401
    assert ask(guarded, "GET", "/openapi.json").status_code == 401
    assert ask(guarded, "GET", "/health").status_code == 200
    right = {"Authorization": f"Bearer {TOKEN}", "Host": "retrieval.example"}
    assert ask(guarded, "POST", "/search", json=body, headers=right).status_code == 200


def test_without_a_token_only_local_names_are_served(api: FastAPI) -> None:
    guarded = Guard(api)
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421)):
        assert ask(guarded, "GET", "/health", headers={"Host": host}).status_code == status, host


def test_a_large_body_is_refused_whether_it_says_its_size_or_not(api: FastAPI) -> None:
    guarded = Guard(api, largest_body=1000)
    content = json.dumps({"query": "a" * 2000}).encode()

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    for sent in (content, in_pieces()):
        answer = ask(guarded, "POST", "/search", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and "1,000 bytes" in answer.json()["detail"]


def test_a_token_file_must_keep_somebody_out(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ValueError, match="cannot read"):
        read_token(str(path))
    for wrong in ("", "short", "two words that are long enough", "0123456789abcdef\n0123456789abcdef"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="at least 16 characters"):
            read_token(str(path))
    path.write_text(f"{TOKEN}\n")
    assert read_token(str(path)) == TOKEN


def test_without_a_token_nothing_but_loopback_may_be_bound() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""):
        with pytest.raises(ValueError, match="can be reached from other machines"):
            RetrievalConfig(http_port=8000, http_host=host)
    assert RetrievalConfig(http_port=8000, http_host="0.0.0.0", http_token_file="token").http_token_file == "token"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "is not an index: cannot read manifest.json"),
        (["--host", "0.0.0.0"], "can be reached from other machines: set http_token_file (--token-file)"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    outcome = CliRunner().invoke(app, ["retrieval", "serve", str(tmp_path), *arguments])
    assert isinstance(outcome.exception, UserError) and said in str(outcome.exception)


def test_an_agent_finds_and_reads_over_the_model_context_protocol(answering: Answering) -> None:
    async def scenario() -> None:
        async with Client(mcp_app(LocalSearcher(answering), local=True).server) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["search", "read_document"]
            found = await client.call_tool("search", {"query": "cytokine sepsis", "k": 1, "filters": {"evidence_level": 6}})
            assert not found.is_error and found.structured_content["hits"][0]["id"] == "pmid/3"
            read = await client.call_tool("read_document", {"document_id": "pmid/1"})
            assert read.structured_content["text"] == "Metformin lowers glucose."
            for tool, arguments, said in (
                ("read_document", {"document_id": "pmid/9"}, "no document of this id"),
                ("search", {"query": " "}, "white space asks nothing"),
                ("search", {"query": "sepsis", "collection": "z"}, "UnknownCollection"),
                ("search", {"query": "sepsis", "k": 0}, "k"),
            ):
                wrong = await client.call_tool(tool, arguments)
                assert wrong.is_error and said in wrong.content[0].text, (tool, arguments, wrong)

    asyncio.run(scenario())


def test_nothing_that_fits_or_breaks_the_openapi_description_makes_a_server_error(api: FastAPI) -> None:
    asked: set[str] = set()
    for found in schemathesis.openapi.from_asgi("/openapi.json", api).get_all_operations():
        operation = found.ok()
        asked.add(operation.label)

        def attack(case: Any) -> None:
            response = case.call()
            assert response.status_code < 500, (case, response.status_code)
            # No description says that the first year is not after the last one, or that one query at least has a word.
            lenient = [negative_data_rejection] if case.path == "/retrieve" else []  # as the protocol's own server is
            case.validate_response(response, excluded_checks=[positive_data_acceptance, *lenient])

        # What takes no input has no wrong one.
        modes = list(GenerationMode) if operation.body or operation.path_parameters else [GenerationMode.POSITIVE]
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode)
            settings(max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))(
                given(case=strategy)(attack)
            )()
    ours = {"GET /health", "GET /stats", "POST /search", "POST /search/batch", "GET /documents/{document_id}"}
    assert asked == ours | {"POST /retrieve"}


def test_a_server_takes_as_many_connections_as_the_system_allows() -> None:
    program = (
        "import resource; from retrieval_service.serving import allow_many_connections;"
        " resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500)); allow_many_connections();"
        " print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "(500, 500)\n"


@pytest.mark.parametrize("filters", [None, {}, {"year_from": 2001, "publication_types": ["rct"]}])
def test_a_query_of_a_stranger_is_the_query_that_an_actor_would_ask(filters: dict[str, Any] | None) -> None:
    """As another type, empty filters were taken for filters that let everything through: nothing was searched together."""
    fields = {"query": "glucose", "k": 2} | ({} if filters is None else {"filters": filters})
    asked, ours = AskedQuery.model_validate_json(json.dumps(fields)), SearchQuery.model_validate(fields)
    assert asked.filters == ours.filters and (asked.filters == Filters()) is not bool(filters)
    assert CacheKey.of(asked, "hash") == CacheKey.of(ours, "hash")
