"""How fast do rows reach the learner, and what does it cost the run loop to write them down? CPU seconds of one thread."""

from __future__ import annotations

import io
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.harness import Result, figure, interleaved, rate, ratio, result
from bench.workload import GROUP, VERSION
from learner.batch import EpisodeBatch, read_batch
from trajectories.recorder import Recorder
from trajectories.schema import EPISODE_SCHEMA, Episode, RewardPart, Search, Segment, TurnReward, VersionSpan, to_table
from trajectories.store import with_ending

OF_MEMCPY, OVER_PICKLING, LOOP_MS = 0.5, 10.0, 2.0
GROUPS, TOKENS = 128, 2_000  # one step of searching episodes; 50 MB of learner arrays, far beyond any cache
LARGE_TOKENS = 8_000  # an episode near the end of a long context
WRITTEN = 24  # groups a round

Group = list[Episode]


def run() -> Result:
    """Rows into learner arrays beside memcpy and pickling, and the run loop's share of writing groups down."""
    groups = [episodes(number, TOKENS) for number in range(GROUPS)]
    arrow = [as_bytes(to_table(group)) for group in groups]
    pickled = [pickle.dumps(group, protocol=pickle.HIGHEST_PROTOCOL) for group in groups]
    tables = [opened(group) for group in arrow]
    batch = read_batch(tables)
    require_equal(batch, from_pickles(pickled))
    size = nbytes(batch)
    flat = np.ones(size, np.uint8)
    variants: dict[str, Callable[[], object]] = {
        "memcpy": flat.copy,
        "Arrow rows": lambda: read_batch(tables),
        "Arrow bytes": lambda: read_batch([opened(group) for group in arrow]),
        "pickled episodes": lambda: from_pickles(pickled),
    }
    seconds = interleaved({name: cpu_seconds(variant) for name, variant in variants.items()})
    figures = [
        rate(f"{name} into learner arrays, {size / 1e6:.0f} MB", size / 1e9, took, "GB/s") for name, took in seconds.items()
    ]
    figures.append(figure("Arrow bytes of these rows over pickled bytes", sum(map(len, arrow)) / sum(map(len, pickled)), "x"))
    ratios = [
        ratio("Arrow rows over memcpy", seconds["memcpy"].median / seconds["Arrow rows"].median, OF_MEMCPY),
        ratio(
            "Arrow bytes over pickled episodes",
            seconds["pickled episodes"].median / seconds["Arrow bytes"].median,
            OVER_PICKLING,
        ),
    ]
    for tokens in (TOKENS, LARGE_TOKENS):
        loop_ms, written_ms, step_ms = writing(to_table(episodes(0, tokens)))
        what = f"a group of {GROUP} episodes of {tokens:,} tokens"
        figures += [
            figure(f"{what}: until it is spooled", written_ms, "ms"),
            figure(f"{what}: its share of Parquet", step_ms, "ms"),
        ]
        ratios.append(ratio(f"{what}: ms of the run loop", loop_ms, LOOP_MS, at_most=True))
    return result(figures, ratios, ["memcpy: one copy of as many bytes into new memory"], threads=1)


def episodes(group: int, tokens: int) -> Group:
    """One group of about so many tokens an episode, each with one search, sampled under two versions."""
    rng = np.random.default_rng(group)
    made = []
    for index in range(GROUP):
        n = int(tokens * rng.uniform(0.5, 1.5))
        edges = list(accumulate((n // 8, n // 4, n - n // 8 - 2 * (n // 4), n // 4), initial=0))
        own = np.zeros(n, bool)
        own[edges[1] : edges[2]] = own[edges[3] :] = True
        segments = [Segment(*each) for each in zip(
            ("prompt", "model", "document", "model"), edges[:-1], edges[1:], (-1, 0, 0, 1), strict=True
        )]  # fmt: skip
        document = " ".join(["word"] * (edges[3] - edges[2]))
        made.append(
            Episode(
                "bench", f"g{group}", f"g{group}-{index}", f"q{group}", 0, "joint", "world", "text",
                rng.integers(0, 150_000, n).tolist(), own.tolist(), np.where(own, -rng.random(n), 0.0).tolist(), segments,
                [VersionSpan(*VERSION, edges[1], edges[2]), VersionSpan(VERSION.generation, VERSION.number + 1, edges[3], n)],
                [Search(0, "query", ["d1"], [document], [1.0], [2], "hash", 1.0)], [RewardPart("answer", 1.0, 1.0)],
                [TurnReward(0, "gain", 0.25)], 1.25, "B", True, "answer", document,
            )
        )  # fmt: skip
    return made


def as_bytes(rows: pa.Table) -> pa.Buffer:
    """As rows lie in the object store."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, EPISODE_SCHEMA) as stream:
        stream.write_table(rows)
    return pa.py_buffer(sink.getvalue())


def opened(group: pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(group).read_all()


def from_pickles(groups: list[bytes]) -> EpisodeBatch:
    """What a learner of Python objects would do: unpickle, then one array for each column."""
    rows = [episode for group in groups for episode in pickle.loads(group)]
    lengths = [len(episode.token_ids) for episode in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(offsets[-1])
    generation_t, number_t, turn_t = (np.full(tokens, -1, np.int32) for _ in range(3))
    process_t = np.zeros(tokens, np.float32)
    groups_seen: dict[str, int] = {}
    for (start, _), episode in zip(pairwise(offsets.tolist()), rows, strict=True):
        for span in episode.versions:
            generation_t[start + span.start : start + span.end] = span.generation
            number_t[start + span.start : start + span.end] = span.number
        ends = {}
        for segment in episode.segments:
            if segment.source == "model":
                turn_t[start + segment.start : start + segment.end] = segment.turn
                ends[segment.turn] = start + segment.end - 1
        for reward in episode.turn_rewards:
            process_t[ends[reward.turn]] += reward.value
        groups_seen.setdefault(episode.group_id, len(groups_seen))
    return EpisodeBatch(
        offsets=offsets,
        token_ids_t=np.fromiter(chain.from_iterable(row.token_ids for row in rows), np.int32, tokens),
        loss_mask_t=np.fromiter(chain.from_iterable(row.loss_mask for row in rows), np.bool_, tokens),
        behaviour_t=np.fromiter(chain.from_iterable(row.logprobs for row in rows), np.float32, tokens),
        generation_t=generation_t, number_t=number_t, turn_t=turn_t, process_t=process_t,
        reward_e=np.array([row.reward for row in rows], np.float32),
        temperature_e=np.array([row.temperature for row in rows], np.float32),
        group_e=np.array([groups_seen[row.group_id] for row in rows]),
    )  # fmt: skip


def require_equal(ours: EpisodeBatch, theirs: EpisodeBatch) -> None:
    """Both ways must make the same arrays, or their times say nothing."""
    for name in EpisodeBatch.__dataclass_fields__:
        if not np.array_equal(getattr(ours, name), getattr(theirs, name)):
            raise RuntimeError(f"{name} differs between the rows as Arrow and the rows as pickled episodes")


def nbytes(batch: EpisodeBatch) -> int:
    return sum(getattr(batch, name).nbytes for name in EpisodeBatch.__dataclass_fields__)


def cpu_seconds(function: Callable[[], object]) -> Callable[[], float]:
    """What another program takes of the core is not this one's doing."""

    def run_once() -> float:
        started = time.process_time()
        function()
        return time.process_time() - started

    return run_once


def writing(rows: pa.Table) -> tuple[float, float, float]:
    """Medians in milliseconds: of the thread that hands a group over, until it is in the spool, and of its share of a step's file."""
    handed, spooled = [], []
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), generation=1)
        for _ in range(WRITTEN):
            started, own = time.perf_counter(), time.thread_time()
            done = recorder.finished(rows)
            handed.append(time.thread_time() - own)
            done.result()
            spooled.append(time.perf_counter() - started)
        own = time.thread_time()
        groups = [with_ending(rows, "trained", "", 1, VERSION)] * WRITTEN
        started = time.perf_counter()
        recorder.step(1, groups, [])
        handed = [each + (time.thread_time() - own) / WRITTEN for each in handed]
        recorder.sync()
        step = (time.perf_counter() - started) / WRITTEN
        recorder.close()
    return 1e3 * statistics.median(handed), 1e3 * statistics.median(spooled), 1e3 * step
