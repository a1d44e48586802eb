"""What the rollout benchmarks rest on: taught episodes are whole ones, flows stay full, and processor time is counted as used."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from actors.engine import Completion
from actors.episodes import EpisodeRunner
from actors.rollout import searcher_for
from actors.tokens import EpisodeTokenizer
from bench.asynchrony import Measured, report, settings
from bench.processor_time import ProcessorTime, processor_time
from bench.taught import Lessons, SleepingService, TaughtPolicy, at_once, build_index, prepare_lessons
from medr3.config import load
from retrieval_service.config import RetrievalConfig
from tasks.config import WorldConfig
from tasks.vocabulary import build_tokenizer
from tasks.world import Universe
from trajectories.schema import Episode, VersionSpan, to_table

RETRIEVAL = RetrievalConfig()


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    universe = Universe.build(WorldConfig(training_worlds=1, entities_per_type=8))
    index = build_index(universe, tmp_path_factory.mktemp("bench") / "index", RETRIEVAL)
    return prepare_lessons(universe, index, RETRIEVAL, groups=3, group_size=4)


class Wordless:
    """In the place of an engine: as many tokens as asked for, all the same."""

    async def generate(self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, **_: object) -> Completion:
        return Completion([0] * max_tokens, [-1.0] * max_tokens, [VersionSpan(1, 0, 0, max_tokens)])


def rolled_out(lessons: Lessons, delay_s: float) -> tuple[list[Episode], TaughtPolicy]:
    policy = TaughtPolicy(Wordless(), lessons.turns)  # type: ignore[arg-type]

    async def run() -> list[Episode]:
        searcher = searcher_for(SleepingService(lessons.found, delay_s), RETRIEVAL)
        runner = EpisodeRunner(policy, EpisodeTokenizer(build_tokenizer()), searcher, RETRIEVAL.mode, 512)
        return [episode for request in lessons.requests for episode in await runner.run(request)]

    return asyncio.run(run()), policy


def test_whatever_the_engine_samples_the_teacher_s_episodes_are_whole(lessons: Lessons) -> None:
    episodes, policy = rolled_out(lessons, delay_s=0.0)
    assert {episode.finish for episode in episodes} == {"answer"}
    assert len({len(episode.searches) for episode in episodes}) > 1  # the teacher stops early now and then
    assert all(episode.searches and episode.searches[0].documents for episode in episodes)
    assert (
        sum(sum(episode.loss_mask) for episode in episodes)
        == lessons.tokens(lessons.requests)
        == sum(sent.tokens for sent in policy.sent)
    )
    assert to_table(episodes).num_rows == 12


def test_what_was_sent_is_each_turn_s_prompt_continued(lessons: Lessons) -> None:
    episodes, policy = rolled_out(lessons, delay_s=0.0)
    by_name = {sent.request_id: sent for sent in policy.sent}
    for episode in episodes:
        last = by_name[f"{episode.episode_id}.0.{len(episode.searches)}"]
        assert last.prompt_ids == episode.token_ids[: len(last.prompt_ids)]
        assert len(last.prompt_ids) + last.tokens == len(episode.token_ids)


def test_a_slow_search_is_waited_for(lessons: Lessons) -> None:
    episodes, _ = rolled_out(lessons, delay_s=0.05)
    assert all(search.latency_ms >= 50 for episode in episodes for search in episode.searches)


def test_the_next_begins_when_one_ends() -> None:
    running = most = 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return number

    assert asyncio.run(at_once([lambda n=n: call(n) for n in range(7)], 3)) == list(range(7))  # type: ignore[misc]
    assert most == 3


def test_processor_time_is_that_of_the_process_and_of_those_below_it() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass"
    before = processor_time(os.getpid())
    subprocess.run([sys.executable, "-c", work], check=True)  # ended and waited for
    with_ended = processor_time(os.getpid()) - before
    assert 0.25 <= with_ended.tree < 0.8  # counted in ticks of 10 ms
    running = subprocess.Popen([sys.executable, "-c", f"{work}\ntime.sleep(30)"])
    try:
        deadline = time.monotonic() + 20
        while processor_time(running.pid).tree < 0.25 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (processor_time(os.getpid()) - before).tree >= with_ended.tree + 0.2
    finally:
        running.kill()
        running.wait()
    assert with_ended.total > 0 and with_ended.busy >= 0.25


def test_steps_are_compared_with_what_the_synchronous_run_s_work_allows() -> None:
    rows = [{"rollout/response_tokens": 30.0, "rollout/searches": 2.0, "rollout/search_s": 2.5}] * 10
    cores = os.cpu_count() or 1
    # Both needed 2 s of work a step; of the machine nobody else took anything.
    fast = Measured(22.0 / cores, ProcessorTime(20.0, 20.0, 22.0), rows)
    slow = Measured(50.0 / cores, ProcessorTime(20.0, 20.0, 50.0), rows)
    idle, bound = report(fast, slow)["ratios"]
    assert idle["value"] == pytest.approx(2 / 22) and idle["reached"]
    assert bound["value"] == pytest.approx(20 / 22) and bound["reached"]
    assert not report(slow, slow)["ratios"][0]["reached"]


def test_the_runs_differ_from_the_demo_in_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "run", 2, tmp_path / "model")))
    config = load(path, [])
    assert [phase.name for phase in config.curriculum.phases] == ["joint"]
    assert (config.rollout.max_staleness, config.retrieval.inject_latency_s) == (2, 1.0)
    assert config.rollout.groups_per_step * config.rollout.group_size == 256
