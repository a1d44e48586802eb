"""A real HTTP server that speaks as an OpenAI-compatible judge does, misbehaves when told to, and what it is asked about."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from rewards.config import JudgeConfig
from rewards.judge import Judge
from rewards.judge_prompts import Ask, answer_verdict
from tasks.questions import Question
from trajectories.schema import Episode, Search

T = TypeVar("T")


@dataclass
class Answer:
    """What the server does with one request."""

    content: Any = '{"verdict": 2}'
    status: int = 200
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None  # instead of a completion
    hang_up: bool = False


@dataclass
class JudgeServer:
    """What it was asked, and the most requests that it ever held at once."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorisations: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def cases(self) -> list[dict[str, Any]]:
        return [json.loads(request["messages"][1]["content"]) for request in self.requests]


@asynccontextmanager
async def judge_server(answer: Callable[[int, dict[str, Any]], Answer]) -> AsyncIterator[JudgeServer]:
    """Serves on a free port of this machine; `answer` sees the request's number and its payload."""
    server = JudgeServer()

    async def complete(request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        server.requests.append(payload)
        server.authorisations.append(request.headers.get("Authorization"))
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            said = answer(len(server.requests) - 1, payload)
            await asyncio.sleep(said.delay_s)
            if said.hang_up and request.transport:
                request.transport.close()
            completion = {"choices": [{"message": {"role": "assistant", "content": said.content}}]}
            return web.Response(
                text=json.dumps(completion) if said.body is None else said.body,
                status=said.status,
                headers=said.headers,
                content_type="application/json",
            )
        finally:
            server.at_once -= 1

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


TEXT = Question.model_validate(
    {
        "id": "q", "text": "what causes it?", "kind": "text", "gold": "iron deficiency", "aliases": ["sideropenia"], "source": "medqa",
        "options": {"A": "iron deficiency", "B": "thalassaemia"}, "reference_graphs": [[["iron deficiency", "causes", "anaemia"]]],
    }
)  # fmt: skip


def episode(answer: str = "low iron", thought: str = "iron is low", searches: int = 1) -> Episode:
    found = [Search(turn, f"query {turn}", [f"d{turn}"], [f"text {turn}"], [1.0], [1], "h", 1.0) for turn in range(searches)]
    asked = "".join(f"<search> query {turn} </search> <document> text {turn} </document> " for turn in range(searches))
    text = f"<think> {asked}{thought} </think> <answer> {answer} </answer>"
    return Episode(
        "r", "g", "e", "q", 0, "p", "medqa", "text", [], [], [], [], [], found, answer=answer, finish="answer", text=text
    )


def ask(answer: str = "low iron") -> Ask[int]:
    return answer_verdict(TEXT, answer, rare_disease=False)


def with_server(
    answer: Callable[[int, dict[str, Any]], Answer],
    then: Callable[[Judge, JudgeServer], Coroutine[Any, Any, T]],
    **settings: Any,
) -> T:
    async def run() -> T:
        async with judge_server(answer) as server:
            config = JudgeConfig(url=server.url, model="m", **({"first_pause_s": 0.0} | settings))
            async with Judge(config) as judge:
                return await then(judge, server)

    return asyncio.run(run())
