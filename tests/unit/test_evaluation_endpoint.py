"""The episode protocol over HTTP, against a real server that speaks as OpenAI's interface does, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.config import EpisodeBudget
from actors.messages import Examined, GroupRequest
from actors.rollout import EXAMINATION
from medr3.evaluation import endpoint as endpoint_module
from medr3.evaluation.endpoint import EndpointConfig, EndpointFailed, EndpointPolicy
from medr3.evaluation.serving import EndpointExamination
from medr3.evaluation.written import WrittenText, cut, spread
from retrieval_service.config import RetrievalConfig
from retrieval_service.types import Hit, SearchQuery, SearchResult
from tasks.prompting import ANSWER_CLOSE, SEARCH_CLOSE
from tasks.questions import Question

QUESTION = Question(id="q", text="drug-dose lomab 7 kg ?", kind="number", gold="42", lower=42, upper=42)
SEARCHING = "<think> I look it up <search> drug-dose lomab "
ANSWERING = " drug-dose lomab rct 6 . 7 * 6 = 42 . </think> <answer> 42 "
Reply = Callable[[int, dict[str, Any]], web.StreamResponse]


class Library:
    """Two documents for any query."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    async def search(self, query: SearchQuery) -> SearchResult:
        self.queries.append(query.query)
        hits = [Hit(id=f"d{i}", text=f"drug-dose lomab rct {6 + i} .", score=1.0, evidence_level=2 + i) for i in range(2)]
        return SearchResult(hits=hits, index_hash="h")


def said(text: str, reason: str = "stop", tokens: list[str] | None = None, **more: Any) -> web.StreamResponse:
    choice: dict[str, Any] = {"text": text, "message": {"content": text}, "finish_reason": reason, **more}
    if tokens is not None:
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens)}
    return web.json_response({"choices": [choice], "usage": {"completion_tokens": len(tokens or text.split())}})


@asynccontextmanager
async def server(reply: Reply, models: list[dict[str, str]] | None = None) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        return reply(len(asked) - 1, asked[-1])

    async def listed(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": models}) if models is not None else web.Response(status=404)

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", listed)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/v1", asked
    finally:
        await runner.cleanup()


def examine(
    reply: Reply, budget: EpisodeBudget | None = None, models: list[dict[str, str]] | None = None, **settings: Any
) -> tuple[Examined, list[dict[str, Any]], list[str]]:
    """One episode: its record, what the server was asked, and what was searched."""

    async def story() -> tuple[Examined, list[dict[str, Any]], list[str]]:
        async with server(reply, models) as (url, asked):
            text, library = WrittenText(), Library()
            config = EndpointConfig.model_validate({"url": url, "model": "m"} | settings)
            async with EndpointPolicy(config, text) as policy:
                examination = EndpointExamination(policy, text, None, RetrievalConfig())
                examination._runner._searcher = library
                request = GroupRequest("r", "g", 0, "p", QUESTION, 1, 0.0, 7, budget or EpisodeBudget(), EXAMINATION)
                return (await examination.examine([request]))[0], asked, library.queries

    return asyncio.run(story())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(endpoint_module, "LONGEST_PAUSE_S", 0.02)


def test_a_server_that_leaves_out_its_stop_string_is_understood() -> None:
    record, asked, queries = examine(lambda number, _: said([SEARCHING, ANSWERING][number]))
    assert (record.answer, record.correct, record.finish, record.searches) == ("42", True, "answer", 1)
    assert queries == ["drug-dose lomab"]
    assert record.retrieved == ("d0", "d1") and record.cited == ("d0",) and record.cited_levels == (2,)
    assert record.confidence is None  # nobody told it
    assert record.model_tokens == len(SEARCHING.split()) + len(ANSWERING.split())
    first, second = asked
    assert first["prompt"] == QUESTION.text and first["temperature"] == 0.0
    assert SEARCH_CLOSE in first["stop"] and ANSWER_CLOSE in first["stop"] and len(first["stop"]) <= 4
    # The second prompt is the first and all that followed, word for word.
    documents = " ".join(f"<document> drug-dose lomab rct {6 + i} . </document>" for i in range(2))
    assert second["prompt"] == QUESTION.text + SEARCHING + SEARCH_CLOSE + documents


def test_a_server_that_tells_its_tokens_is_taken_at_its_word() -> None:
    turns = ["<think> 42 </think> <answer> 42 </answer>"]
    tokens = ["<think>", "42", "</think>", "<answer>", "4", "##2", "</answer>"]
    record, _, _ = examine(lambda number, _: said(turns[number], tokens=tokens), models=[{"id": "m", "owned_by": "vllm"}])
    assert record.correct and record.model_tokens == 7
    assert record.confidence == pytest.approx(-0.5)


def test_chat_goes_on_with_its_own_turn() -> None:
    record, asked, _ = examine(lambda number, _: said([SEARCHING, ANSWERING][number]), api="chat")
    assert record.correct
    assert asked[0]["messages"] == [{"role": "user", "content": QUESTION.text}] and "continue_final_message" not in asked[0]
    assert asked[1]["messages"][0] == asked[0]["messages"][0] and asked[1]["continue_final_message"] is True
    assert asked[1]["messages"][1]["content"].startswith(SEARCHING + SEARCH_CLOSE + "<document>")


def test_a_vllm_is_asked_to_keep_every_tag_and_others_are_not() -> None:
    for models, extra in (([{"id": "m", "owned_by": "vllm"}], True), ([{"id": "m"}], False), (None, False)):
        _, asked, _ = examine(lambda *_: said("<think> </think> <answer> 1 </answer>"), models=models)
        assert ("include_stop_str_in_output" in asked[0]) is extra


@pytest.mark.parametrize(
    ("text", "reason", "finish"),
    [
        ("<think> still thinking", "length", "budget"),
        ("<think> I give up", "stop", "malformed"),  # the end of text, with no tag open
        ("", "stop", "malformed"),
        ("<think> a <document> b", "stop", "malformed"),
        ("hello", "length", "malformed"),
    ],
)
def test_whatever_the_model_writes_ends_the_episode_as_it_would_with_an_engine(text: str, reason: str, finish: str) -> None:
    record, _, _ = examine(lambda *_: said(text, reason))
    assert (record.finish, record.answer, record.correct) == (finish, "", False)


def test_a_closed_book_stays_closed() -> None:
    record, asked, queries = examine(lambda *_: said(SEARCHING), EpisodeBudget(retrieval=False, forbid_search=True))
    assert record.finish == "malformed" and queries == [] and len(asked) == 1


def test_what_passes_is_tried_again() -> None:
    def reply(number: int, _: dict[str, Any]) -> web.StreamResponse:
        if number == 0:
            return web.Response(status=503, text="loading")
        if number == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        return web.Response(text="<html>") if number == 2 else said("<think> </think> <answer> 42 </answer>")

    record, asked, _ = examine(reply)
    assert record.correct and len(asked) == 4


@pytest.mark.parametrize(
    ("reply", "reason", "requests"),
    [
        (lambda *_: web.Response(status=503, text="loading\nstill"), "status 503: loading still, 2 times in a row", 2),
        (lambda *_: web.Response(status=400, text='{"error": "no such field"}'), 'status 400: {"error": "no such field"}', 1),
        (lambda *_: web.Response(text="hello"), "an answer that is none (JSONDecodeError", 2),
        (lambda *_: web.json_response([]), "an answer that is none (TypeError", 2),
        (lambda *_: web.json_response({"choices": []}), "an answer that is none (IndexError", 2),
        (lambda *_: said("x", "content_filter"), "it finished because of 'content_filter'", 2),
        (lambda *_: web.json_response({"choices": [{"text": 5, "finish_reason": "stop"}]}), "its text is int", 2),
    ],
)
def test_a_server_that_does_not_answer_is_one_line(reply: Reply, reason: str, requests: int) -> None:
    asked: list[int] = []

    def counted(number: int, payload: dict[str, Any]) -> web.StreamResponse:
        asked.append(number)
        return reply(number, payload)

    with pytest.raises(EndpointFailed) as failed:
        examine(counted, attempts=2)
    assert reason in str(failed.value) and "\n" not in str(failed.value) and "/v1/completions" in str(failed.value)
    assert len(asked) == requests


def test_a_server_that_is_late_is_given_up() -> None:
    async def story() -> None:
        async def late(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(30)
            raise AssertionError

        app = web.Application()
        app.router.add_get("/v1/models", late)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        config = EndpointConfig(url=f"http://{host}:{port}/v1", model="m", timeout_s=0.1, attempts=2)
        try:
            async with EndpointPolicy(config, WrittenText()):
                raise AssertionError
        finally:
            await runner.cleanup()

    with pytest.raises(EndpointFailed, match=r"no answer within 0\.1 s, 2 times in a row"):
        asyncio.run(story())


async def _opened(**settings: Any) -> None:
    async with EndpointPolicy(EndpointConfig.model_validate(settings), WrittenText()):
        raise AssertionError("it opened")


def test_a_dead_address_and_a_wrong_name_are_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(EndpointFailed, match="nothing answers"):
            asyncio.run(_opened(url=f"http://127.0.0.1:{bound.getsockname()[1]}/v1", model="m", attempts=2))
    with pytest.raises(EndpointFailed, match="has no model 'm'; it has other"):
        examine(lambda *_: said("x"), models=[{"id": "other"}])
    monkeypatch.setenv("A_KEY", "sécret\n")
    with pytest.raises(EndpointFailed) as failed:
        asyncio.run(_opened(url="http://127.0.0.1:9/v1", model="m", api_key_env="A_KEY"))
    assert "A_KEY" in str(failed.value) and "cret" not in str(failed.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://me:secret@127.0.0.1/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        EndpointConfig(url=url, model="m")
    assert "secret" not in refused.value.errors(include_url=False)[0]["msg"]


WORDS = st.lists(st.sampled_from(["fever", "##ish", "<think>", "7", " ", "é"]), min_size=1, max_size=20)


@given(WORDS, st.lists(st.sampled_from(["", " ", "\n"]), min_size=20, max_size=20))
def test_pieces_are_the_text_again_and_one_for_each_token(tokens: list[str], between: list[str]) -> None:
    text = "".join(space + token.removeprefix("##") for space, token in zip(between, tokens, strict=False))
    pieces = cut(text, tokens)
    assert pieces is None or ("".join(pieces) == text and len(pieces) == len(tokens))
    if all(token.strip() for token in tokens):
        assert pieces is not None


@given(st.text(max_size=40), st.integers(1, 60))
def test_text_is_spread_over_its_tokens(text: str, count: int) -> None:
    pieces = spread(text, count)
    assert "".join(pieces) == text and len(pieces) == count


@given(st.text(max_size=200))
def test_written_text_comes_back(text: str) -> None:
    written = WrittenText()
    ids = written.encode(text)
    assert written.decode(ids) == text and len(ids) == math.ceil(len(text) / 4) and 0 not in ids


def test_answers_are_json_even_where_nobody_knew_how_sure_they_were() -> None:
    record, _, _ = examine(lambda *_: said("<think> </think> <answer> 42 </answer>"))
    assert json.loads(json.dumps({"confidence": record.confidence}, allow_nan=False)) == {"confidence": None}
