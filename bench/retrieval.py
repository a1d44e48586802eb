"""The retrieval service beside the bare library, and beside a plain FastAPI and FAISS server, over one index of 200k × 768.

Everything that is compared takes turns in one run, with the same number of threads: the service has Ray's processes beside it, which is
its own cost. Queries are all different, and nothing is remembered unless that is what is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from bench.harness import Result, figure, interleaved, rate, ratio, result
from bench.retrieval_costs import Costs, batches
from bench.retrieval_load import Outcome, load
from bench.retrieval_peer import plain_server
from retrieval_service.config import RetrievalConfig
from retrieval_service.types import SearchQuery
from tasks.questions import Document

DOCUMENTS, DIMENSIONS = 200_000, 768
IN_FLIGHT = 64
CROWD = 2_000
K = 3
HTTP_QUERIES = 256  # a round over HTTP: four for every client
_WORDS, _WORDS_OF_A_DOCUMENT, _WORDS_OF_A_QUERY = 30_000, 16, 5
_START_S = 300.0
APP = "bench-retrieval"


def run(documents: int = DOCUMENTS, repetitions: int = 3) -> Result:
    """All ratios; about a quarter of an hour on two cores, most of it the exact search over 200k × 768."""
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as parent:
        folder, port, peer_port = Path(parent, "index"), _free_port(), _free_port()
        config = RetrievalConfig(
            dimensions=DIMENSIONS, factory="Flat", cache_entries=0, replica_cpus=threads, http_port=port, deadline_s=60.0
        )
        build_s = _build(folder, documents, config)
        queries = fresh_queries(documents)
        with _peer(str(folder), config, peer_port, threads), _service(folder, config) as handle:
            more_figures, more_ratios = _http(port, peer_port, queries, repetitions)  # first: its batches are counted
            figures, ratios = _library(folder, config, handle, queries, repetitions)
            crowd_figures, crowd_ratios = _crowd(port, queries)
            cached_figures, cached_ratios = _remembered(folder, config, queries, repetitions)
    return result(
        figures=[figure("index built in", build_s, "s"), *figures, *more_figures, *crowd_figures, *cached_figures],
        ratios=[*ratios, *more_ratios, *crowd_ratios, *cached_ratios],
        notes=[f"{documents:,} documents of {_WORDS_OF_A_DOCUMENT} words, {DIMENSIONS} dimensions, Flat, k = {K}"],
        threads=threads,
    )


def _library(
    folder: Path, config: RetrievalConfig, handle: Any, queries: Iterator[str], repetitions: int
) -> tuple[list[Result], list[Result]]:
    """In this process: batches of the library, the same through the handle, and the halves alone."""
    from retrieval_service.client import RetrievalClient
    from retrieval_service.index import HybridIndex

    index, loop = HybridIndex.load(folder, config), asyncio.new_event_loop()
    client = RetrievalClient(handle, config)

    def asked(count: int, mode: str = "hybrid") -> list[SearchQuery]:
        return [SearchQuery(query=query, k=K, mode=mode) for query in islice(queries, count)]

    def bare() -> float:
        batches = [asked(IN_FLIGHT) for _ in range(2)]
        return _timed(lambda: [index.search(batch) for batch in batches])

    def through_the_handle() -> float:
        waiting = iter(asked(2 * IN_FLIGHT))

        async def caller() -> None:
            for query in waiting:
                await client.search(query)

        async def callers() -> None:
            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))

        return _timed(lambda: loop.run_until_complete(callers()))

    def alone(mode: str) -> Callable[[], float]:
        return lambda: statistics.median(_timed(partial(index.search, [query])) for query in asked(9, mode))

    times = interleaved({"bare": bare, "handle": through_the_handle}, repetitions, warm_up=1)
    halves = interleaved({mode: alone(mode) for mode in ("dense", "lexical", "hybrid")}, repetitions, warm_up=1)
    loop.close()
    slower = max(halves["dense"].median, halves["lexical"].median)
    return (
        [
            rate(f"library, batches of {IN_FLIGHT}", 2 * IN_FLIGHT, times["bare"], "queries/s"),
            rate(f"through the handle, {IN_FLIGHT} in flight", 2 * IN_FLIGHT, times["handle"], "queries/s"),
            *(figure(f"one {mode} query", 1e3 * halves[mode].median, "ms") for mode in halves),
        ],
        [
            ratio("handle / library", times["bare"].median / times["handle"].median, 0.8),
            ratio("hybrid latency / that of its slower half", halves["hybrid"].median / slower, 1.2, at_most=True),
        ],
    )


def _http(port: int, peer_port: int, queries: Iterator[str], repetitions: int) -> tuple[list[Result], list[Result]]:
    outcomes: dict[str, list[Outcome]] = {"service": [], "plain": []}
    costs = {name: Costs(name) for name in outcomes}

    def over(name: str, at: int) -> Callable[[], float]:
        def once() -> float:
            # Dense for both: the plain server has no words to look for.
            mode = {"mode": "dense"} if name == "service" else {}
            bodies = [{"query": query, "k": K, **mode} for query in islice(queries, HTTP_QUERIES)]
            with costs[name].counted(len(bodies)):
                outcomes[name].append(load(f"http://127.0.0.1:{at}/search", bodies, IN_FLIGHT))
            return outcomes[name][-1].seconds

        return once

    times = interleaved({"service": over("service", port), "plain": over("plain", peer_port)}, repetitions, warm_up=1)
    lost = {name: sum(sum(each.failed.values()) for each in found) for name, found in outcomes.items()}
    return (
        [
            rate(f"service over HTTP, {IN_FLIGHT} clients", HTTP_QUERIES, times["service"], "queries/s"),
            rate(f"plain FastAPI and FAISS, {IN_FLIGHT} clients", HTTP_QUERIES, times["plain"], "queries/s"),
            figure("service, 99th percentile", _p99_ms(outcomes["service"]), "ms"),
            figure("plain server, 99th percentile", _p99_ms(outcomes["plain"]), "ms"),
            *(figure(f"requests lost by {name}", lost[name], "requests") for name in lost),
            *batches(port),
            *(each for name in costs for each in costs[name].figures()),
        ],
        [ratio("service / plain server, queries a second", times["plain"].median / times["service"].median, 3.0)],
    )


def _crowd(port: int, queries: Iterator[str]) -> tuple[list[Result], list[Result]]:
    bodies = [{"query": query, "k": K} for query in islice(queries, CROWD)]
    outcome = load(f"http://127.0.0.1:{port}/search", bodies, CROWD)
    return (
        [
            figure(f"{CROWD:,} clients at once: answered", outcome.answered, "requests"),
            figure(f"{CROWD:,} clients at once: tries beyond the first", outcome.tried_again, "requests"),
            figure(f"{CROWD:,} clients at once: all answered within", outcome.seconds, "s"),
        ],
        [ratio(f"failures after retries, {CROWD:,} clients at once", sum(outcome.failed.values()), 0.0, at_most=True)],
    )


def _remembered(
    folder: Path, config: RetrievalConfig, queries: Iterator[str], repetitions: int
) -> tuple[list[Result], list[Result]]:
    """The service takes a cache without restarting; then the same queries come again and again."""
    from retrieval_service.app import deploy
    from retrieval_service.client import RetrievalClient

    handle = deploy(folder, config.model_copy(update={"cache_entries": 16_384}), APP)
    client, loop = RetrievalClient(handle, config), asyncio.new_event_loop()
    same = [SearchQuery(query=query, k=K) for query in islice(queries, 2 * IN_FLIGHT)]

    def ask(asked: list[SearchQuery], times: int) -> float:
        waiting = iter(asked * times)

        async def caller() -> None:
            for query in waiting:
                await client.search(query)

        async def callers() -> None:
            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))

        return _timed(lambda: loop.run_until_complete(callers())) / times

    def new() -> float:
        return ask([SearchQuery(query=query, k=K) for query in islice(queries, 2 * IN_FLIGHT)], 1)

    ask(same, 1)
    times = interleaved({"new": new, "remembered": lambda: ask(same, 10)}, repetitions, warm_up=1)
    loop.close()
    return (
        [
            rate("new queries, cache on", len(same), times["new"], "queries/s"),
            rate("remembered queries", len(same), times["remembered"], "queries/s"),
        ],
        [ratio("remembered / new, queries a second", times["new"].median / times["remembered"].median, 10.0)],
    )


def _build(folder: Path, documents: int, config: RetrievalConfig) -> float:
    from retrieval_service.index import HybridIndex

    texts = documents_of_words(documents, seed=0)
    made = (Document(id=f"d{number}", text=" ".join(words)) for number, words in enumerate(texts))
    return _timed(lambda: HybridIndex.build(made, folder, config))


def documents_of_words(count: int, seed: int) -> Iterator[list[str]]:
    """Words as frequent as in language: the r-th most frequent one in proportion to 1 / r."""
    import numpy as np

    numbers = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, _WORDS + 1)
    ends = np.cumsum(shares / shares.sum())
    for _ in range(count):
        yield [f"w{place:x}" for place in np.searchsorted(ends, numbers.random(_WORDS_OF_A_DOCUMENT))]


def fresh_queries(documents: int) -> Iterator[str]:
    """Some words of a document, and never the same query twice."""
    chosen = random.Random(1)
    texts = list(islice(documents_of_words(documents, seed=0), 20_000))
    number = 0
    while True:
        words = chosen.sample(chosen.choice(texts), _WORDS_OF_A_QUERY)
        yield " ".join([*words, f"q{number}"])
        number += 1


@contextmanager
def _service(folder: Path, config: RetrievalConfig) -> Iterator[Any]:
    from retrieval_service.serving import ENVIRONMENT, allow_many_connections

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    allow_many_connections()  # of the clients, which are in this process
    import ray
    from ray import serve

    from retrieval_service.app import deploy

    ray.init(address="local", num_cpus=int(config.replica_cpus) + 1, include_dashboard=False, log_to_driver=False)
    try:
        yield deploy(folder, config, APP)
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def _peer(folder: str, config: RetrievalConfig, port: int, threads: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=plain_server, args=(folder, config, port, threads), daemon=True)
    server.start()
    try:
        _wait_for(f"http://127.0.0.1:{port}/docs")
        yield
    finally:
        server.terminate()
        server.join()


def _wait_for(url: str) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _p99_ms(outcomes: list[Outcome]) -> float:
    latencies = [seconds for outcome in outcomes[1:] for seconds in outcome.latencies_s]  # the first one was to warm up
    return 1e3 * statistics.quantiles(latencies, n=100)[98]
