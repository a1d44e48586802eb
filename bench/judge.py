"""How much time the judge's client adds to that of the judge's server, with many requests in flight.

The server is a process of its own that takes a random while, as a model does, and replies how long it took; the client's overhead is
what a caller waited beyond that: queueing in both processes' loops, HTTP, JSON, and the cache's files.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from multiprocessing.connection import Connection

from aiohttp import web

from bench.harness import Result, figure, ratio, result
from rewards.config import JudgeConfig
from rewards.judge import Judge
from rewards.judge_prompts import Ask, step_relevance_verdict
from tasks.questions import Question
from trajectories.schema import Search

SHORTEST_S, LONGEST_S = 0.2, 0.6  # what a judge of some billion parameters takes for a verdict
GOAL_P99_MS = 10.0


def run(in_flight: int = 64, requests: int = 3_000, warm_up: int = 256) -> Result:
    """The overhead's median and 99th percentile in milliseconds; cached replies are timed apart."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    try:
        port = here.recv()
        with tempfile.TemporaryDirectory() as folder:
            config = JudgeConfig(url=f"http://127.0.0.1:{port}/v1", model="bench", cache=folder, concurrency=in_flight)
            overhead, cached, seconds = asyncio.run(_measure(config, in_flight, requests, warm_up))
    finally:
        server.terminate()
        server.join()
    p99 = 1e3 * statistics.quantiles(overhead, n=100)[98]
    return result(
        figures=[
            figure("requests a second", requests / seconds, "1/s"),
            figure("overhead, median", 1e3 * statistics.median(overhead), "ms"),
            figure("overhead, 99th percentile", p99, "ms"),
            figure("cached reply, median", 1e3 * statistics.median(cached), "ms"),
        ],
        ratios=[ratio(f"p99 overhead in ms, {in_flight} in flight", p99, GOAL_P99_MS, at_most=True)],
        notes=[
            f"{requests} requests after {warm_up}; the server takes {SHORTEST_S} to {LONGEST_S} s each, in a process of its own"
        ],
    )


async def _measure(config: JudgeConfig, in_flight: int, requests: int, warm_up: int) -> tuple[list[float], list[float], float]:
    async with Judge(config) as judge:
        asks = [_ask(number) for number in range(warm_up + requests)]
        # One stream: the first requests leave at the same instant and open the connections, which is no steady state.
        ended = (await _ask_all(judge, asks, in_flight))[warm_up:]
        overhead = [seconds for _, seconds in ended]
        seconds = ended[-1][0] - ended[0][0]
        cached = []
        for ask in asks[:500]:
            asked = time.perf_counter()
            await judge.ask(ask)
            cached.append(time.perf_counter() - asked)
        return overhead, cached, seconds


async def _ask_all(judge: Judge, asks: list[Ask[float]], in_flight: int) -> list[tuple[float, float]]:
    """When each verdict came and its overhead; every caller asks its next question when it has the verdict on its last one."""
    waiting = iter(asks)
    ended: list[tuple[float, float]] = []

    async def caller() -> None:
        for ask in waiting:
            asked = time.perf_counter()
            took_s = await judge.ask(ask)
            now = time.perf_counter()
            ended.append((now, now - asked - took_s))

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return ended


def _ask(number: int) -> Ask[float]:
    """A step's relevance: its verdict is a number from 0 to 1, in which the server says how long it took."""
    question = Question.model_validate({"id": "q", "text": f"question {number}?", "kind": "text", "gold": "x"})
    documents = [f"A passage of some hundred characters about the matter in hand, number {number}. " * 8] * 5
    return step_relevance_verdict(question, Search(0, f"query {number}", [], documents, [], [], "", 0.0))


def _serve(pipe: Connection) -> None:
    async def complete(request: web.Request) -> web.Response:
        started = time.perf_counter()
        await request.read()
        await asyncio.sleep(random.uniform(SHORTEST_S, LONGEST_S))
        content = f'{{"relevance": {time.perf_counter() - started:.6f}, "contradicts": false}}'
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": content}}]})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())
