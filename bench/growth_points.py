"""What grows, each size in a process of its own: every function here is set up in such a process and returns its step.

A step tells processor time, seconds by the clock, and how far the process's resident memory rose above what it held before it had
anything of that size.
"""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.harness import status_bytes

if TYPE_CHECKING:
    from bench.driver_costs import Costs
    from bench.trajectories import Group

QUERIES = 32  # a step, of each kind and all new; a batch as a replica gets them
GROUPS = 32  # of one size in a step
LEARNED_TOKENS = 8_192  # of a step whatever its episodes' length: one forward pass, and two episodes of the longest context


class Cost(NamedTuple):
    processor_s: float
    clock_s: float


class Reading(NamedTuple):
    """One step of one size."""

    costs: dict[str, Cost]  # by what was done
    memory: float  # bytes above the start, at the peak so far


class Meter:
    """Costs of named deeds, and the memory that this process took since the meter was made."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()  # or a full collection looks at every object of every library, in whichever deed it happens to fall
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
        self._before = status_bytes("VmRSS")
        self._costs: dict[str, Cost] = {}

    @contextmanager
    def of(self, name: str, times: float = 1.0) -> Iterator[None]:
        """Of one of so many equal parts of what happens inside. Every thread of the process counts."""
        clock, processor = time.perf_counter(), time.process_time()
        yield
        self._costs[name] = Cost((time.process_time() - processor) / times, (time.perf_counter() - clock) / times)

    def reading(self) -> Reading:
        return Reading(dict(self._costs), float(status_bytes("VmHWM") - self._before))


# Corpus


def indexed(_: int, documents: int, folder: Path, factory: str) -> Callable[[], Reading]:
    """Builds an index, once."""
    _one_thread()
    from bench.retrieval import DIMENSIONS, documents_of_words
    from retrieval_service.config import RetrievalConfig
    from retrieval_service.index import HybridIndex
    from tasks.questions import Document

    meter = Meter()

    def step() -> Reading:
        texts = documents_of_words(documents, seed=0)
        made = (Document(id=f"d{number}", text=" ".join(words)) for number, words in enumerate(texts))
        with meter.of(f"build, {factory}"):
            HybridIndex.build(made, folder, RetrievalConfig(dimensions=DIMENSIONS, factory=factory))
        return meter.reading()

    return step


def searched(_: int, documents: int, folder: Path, factory: str, modes: tuple[str, ...]) -> Callable[[], Reading]:
    """Loads an index and asks it in batches; nothing is remembered."""
    _one_thread()
    from bench.retrieval import DIMENSIONS, K, fresh_queries
    from retrieval_service.config import RetrievalConfig
    from retrieval_service.index import HybridIndex
    from retrieval_service.types import SearchQuery

    queries = fresh_queries(documents)
    next(queries)  # the words that they are made of do not count as the index's memory
    meter = Meter()
    index = HybridIndex.load(folder, RetrievalConfig(dimensions=DIMENSIONS, factory=factory))

    def step() -> Reading:
        for mode in modes:
            batch = [SearchQuery(query=query, k=K, mode=mode) for query in islice(queries, QUERIES)]
            with meter.of(f"{'words' if mode == 'lexical' else factory}, a query", QUERIES):
                index.search(batch)
        return meter.reading()

    return step


def _one_thread() -> None:
    """Threads that wait busily for each other would count as work."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import faiss

    faiss.omp_set_num_threads(1)


# Context


def learned(_: int, length: int, shape: tuple[int, ...], tokens: int) -> Callable[[], Reading]:
    """A learner step of so many tokens in episodes of one length, told for one episode.

    The second cost leaves out attention's share of the arithmetic, which grows with the square of a length by its nature: it shows
    whether anything else does.
    """
    import torch

    from bench import workload
    from bench.flops import step_flops
    from learner.trainer import PolicyTrainer

    torch.set_num_threads(1)
    torch.ones(64, 64) @ torch.ones(64, 64)  # libraries of products are loaded before memory counts
    config = workload.settings(microbatch_tokens=max(tokens, length))
    meter = Meter()
    count = tokens // length
    policy, batch = workload.prepared(workload.shape(*shape), workload.search_episodes([length] * count), config)
    trainer = PolicyTrainer(policy, config)
    attention = 6.0 * shape[1] * shape[0] * count * length**2 / step_flops(policy.causal_lm, batch)

    def step() -> Reading:
        with meter.of("an episode", count):
            workload.step(trainer, batch)
        costs, memory = meter.reading()
        whole = costs["an episode"]
        rest = Cost(whole.processor_s * (1 - attention), whole.clock_s * (1 - attention))
        return Reading({**costs, "an episode, without attention's arithmetic": rest}, memory)

    return step


# Group size


def accounted(_: int, members: int, tokens: int) -> Callable[[], Reading]:
    """What a group costs those who pass it on, whatever its size: so many tokens in all."""
    from learner.batch import read_batch
    from trajectories.schema import to_table

    with tempfile.TemporaryDirectory() as folder:  # what is imported on the way is nobody's cost
        drive(Path(folder), [sized_group(0, 1, 16)], Meter())
    meter = Meter()
    groups = [sized_group(number, members, tokens) for number in range(GROUPS)]
    tables = [to_table(group) for group in groups]

    def step() -> Reading:
        with meter.of("its rows, in the actor", GROUPS):
            for group in groups:
                to_table(group)
        with tempfile.TemporaryDirectory() as folder:
            drive(Path(folder), groups, meter)
        with meter.of("into the learner's arrays", GROUPS):
            read_batch(tables)
        return meter.reading()

    return step


def sized_group(number: int, members: int, tokens: int) -> Group:
    """One group of so many episodes that share these tokens."""
    from bench.trajectories import episodes

    made: Group = []
    while len(made) < members:
        made += episodes(number + len(made), max(16, tokens // members))
    group_id = f"g{number}"
    return [replace(each, group_id=group_id, episode_id=f"{group_id}-{n}") for n, each in enumerate(made[:members])]


def drive(folder: Path, groups: list[Group], meter: Meter) -> None:
    """One step of a run loop around these groups: request, summary and rows as they travel, ledger, events, spool, the step's file."""
    from actors.messages import GroupSummary
    from bench.trajectories import as_bytes, opened
    from trajectories.events import EventKind, EventLog
    from trajectories.groups import Rules
    from trajectories.ledger import Ledger
    from trajectories.recorder import Recorder
    from trajectories.schema import WeightVersion, to_table
    from trajectories.store import with_ending

    version = WeightVersion(1, 0)
    arrived = {}
    for group in groups:
        n, name = len(group), group[0].group_id
        summary = GroupSummary(
            name, 0, "e", version, version, [1.0] * n, [True] * n, {f"component-{each}": 0.5 for each in range(8)}, {"answer": n},
            evidence_levels=[1, 2, 3] * n, search_ms=[1.0] * n,
        )  # fmt: skip
        arrived[name] = pickle.dumps(summary), as_bytes(to_table(group))
    recorder = Recorder(folder, generation=1)
    ledger = Ledger(Rules(groups_per_step=len(groups), max_staleness=0))
    with EventLog(folder / "events.jsonl") as events, meter.of("the driver", len(groups)):
        for name in arrived:
            ledger.admit(name, "q", "p", 0.0)
            events.append(EventKind.ADMITTED, group_id=name, question_id="q", phase="p")
            ledger.start(name, "e", version)
        tables = []
        for name, (sent, rows) in arrived.items():
            pickle.loads(sent)
            tables.append(opened(rows))
            recorder.finished(tables[-1])
            ledger.finish(name, 0, version, 0.0)
        batch = ledger.take(version)
        assert batch is not None, "all groups have finished"
        ledger.trained(batch, 1)
        for ending, table in zip(ledger.drain_endings(), tables, strict=True):
            events.append(EventKind.TRAINED, group_id=ending.group_id, engine_id="e", step=1, episodes=table.num_rows, age=0)
        recorder.step(1, [with_ending(table, "trained", "", 1, version) for table in tables], list(arrived))
        recorder.sync()
    recorder.close()


# Engines


def simulated(_: int, engines: int, costs: Costs) -> Callable[[], Reading]:
    """The real ledger and windows under simulated engines, twelve steps of as many groups as all of them hold."""
    from bench.simulation import Simulation, saturating

    meter = Meter()

    def step() -> Reading:
        with meter.of("accounts of twelve steps"):
            seen = Simulation(saturating(engines, costs)).run()
        reading = meter.reading()
        busy = Cost(seen.driver_busy, seen.driver_busy)  # seconds of the driver's thread in a simulated second
        return Reading({**reading.costs, "the driver, a second": busy}, reading.memory)

    return step
