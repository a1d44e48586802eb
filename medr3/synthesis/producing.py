"""One order of `medr3 data synthesize`: material, gate and writer are opened, the pipeline runs, and everything is ended again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from actors.config import EpisodeBudget
from actors.failures import PoolDied
from actors.messages import GroupVoided
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.asking import Examination, episodes_at_once
from medr3.evaluation.endpoint import EndpointConfig, EndpointFailed, EndpointPolicy
from medr3.evaluation.serving import EndpointExamination, engines, retrieval
from medr3.evaluation.targets import checked
from medr3.evaluation.written import WrittenText
from medr3.synthesis.gate import Asked, IndexSearcher, Reader, Solver
from medr3.synthesis.material import Material, write_corpus
from medr3.synthesis.pipeline import Plan, Synthesis
from medr3.synthesis.writers import ModelWriter, Writer
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.types import RetrievalError
from rewards.config import JudgeConfig
from rewards.judge import Judge
from tasks.graph.questions import QuestionMaker
from tasks.world import Universe
from trajectories.schema import WeightVersion

CORPUS, INDEX, SUMMARY = "corpus.jsonl", "index", "synthesis.json"
PHRASES_FILE = "phrases.json"  # how relations are put in the documents: a teacher searches and reads in these words
REPLY_TOKENS = 1_024  # of a question put into words
REPLY_S = 120  # for it
Say = Callable[[str], None]


@dataclass(frozen=True)
class Gate:
    """Who tries the questions. `kind` is none, reader, endpoint, or policy, which is `policy`'s engines under `config`."""

    kind: str = "reader"
    rounds: int = 3  # of a reader
    samples: int = 4
    temperature: float = 0.7
    searches: int = 4  # that a model may make
    policy: Path | None = None
    config: RunConfig | None = None


@dataclass(frozen=True)
class Order:
    """What is to be made, of what, and by whom. With `endpoint`, a model puts questions into words."""

    material: Material
    plan: Plan
    out: Path
    gate: Gate = Gate()
    endpoint: EndpointConfig | None = None
    writes: bool = True  # the endpoint puts questions into words as well


def produce(order: Order, say: Say) -> dict[str, object]:
    """Leaves questions.jsonl, rejected.jsonl, corpus.jsonl and synthesis.json in the folder; goes on with what is there."""
    order.out.mkdir(parents=True, exist_ok=True)
    try:
        summary = asyncio.run(_produced(order, say))
    except (EndpointFailed, PoolDied, GroupVoided, RetrievalError) as error:
        raise UserError(f"synthesize: {' '.join(str(error).split())}; the same command goes on from there") from None
    (order.out / SUMMARY).write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    return summary


async def _produced(order: Order, say: Say) -> dict[str, object]:
    material = order.material
    if not (order.out / CORPUS).is_file():
        unfinished = order.out / f"{CORPUS}.unfinished"
        write_corpus(unfinished, material.documents.values())
        (order.out / PHRASES_FILE).write_text(json.dumps(material.phrases, ensure_ascii=False), encoding="utf-8")
        unfinished.replace(order.out / CORPUS)
    async with AsyncExitStack() as stack:
        solver = await _solver(order, stack)
        maker = QuestionMaker(material.graph, material.phrases, material.aliases, material.collection)
        writer = await _writer(order, maker, stack)
        names = (_gate_name(order), order.endpoint.model if writer and order.endpoint else "template")
        synthesis = Synthesis(material, order.plan, order.out, solver, writer, names, say)
        summary = await synthesis.run()
        return summary | ({"wording": dict(writer.counts)} if isinstance(writer, ModelWriter) else {})


def _gate_name(order: Order) -> str:
    gate = order.gate
    return gate.kind + {"reader": f" of {gate.rounds} rounds", "policy": f" {gate.policy}"}.get(gate.kind, "")


async def _writer(order: Order, maker: QuestionMaker, stack: AsyncExitStack) -> Writer | None:
    if order.endpoint is None or not order.writes:
        return None
    return ModelWriter(maker, await stack.enter_async_context(Judge(as_judge(order.endpoint, REPLY_TOKENS, REPLY_S))))


def as_judge(endpoint: EndpointConfig, tokens: int, deadline_s: float) -> JudgeConfig:
    """The client that asks a model for one JSON object is the judges' own."""
    return JudgeConfig(
        url=endpoint.url, model=endpoint.model, api_key_env=endpoint.api_key_env, concurrency=endpoint.concurrency,
        request_timeout_s=endpoint.timeout_s, attempts=endpoint.attempts, max_tokens=tokens,
        deadline_s=max(deadline_s, endpoint.timeout_s),
    )  # fmt: skip


async def _solver(order: Order, stack: AsyncExitStack) -> Solver | None:
    gate = order.gate
    if gate.kind == "none":
        return None
    index = await asyncio.to_thread(built_index, order)
    if gate.kind == "reader":
        return Reader(index, order.material.phrases, gate.rounds)
    budget = EpisodeBudget(max_searches=gate.searches, top_k=5, max_turn_tokens=512, max_response_tokens=8_192)
    examination: Examination
    if gate.kind == "endpoint":
        assert order.endpoint is not None, "the command line asks for one"
        text = WrittenText()
        policy = await stack.enter_async_context(EndpointPolicy(order.endpoint, text))
        examination = EndpointExamination(policy, text, None, RetrievalConfig(), IndexSearcher(index))
        return Asked(examination, budget, gate.samples, gate.temperature, 4 * order.endpoint.concurrency)
    assert gate.policy is not None and gate.config is not None, "the command line asks for both"
    config, model = gate.config, checked(gate.policy)
    config.retrieval.http_port = 0  # which a run that trains may have
    config.rollout.colocated = False  # there is no learner to make room for
    await asyncio.to_thread(join_ray, config, stack)
    handle = await stack.enter_async_context(retrieval(order.out / INDEX, config))
    universe = Universe.build(config.world, config.run.seed)  # whose words prove the engines' weights
    examination = await stack.enter_async_context(engines(config, universe, model, WeightVersion(1, 0), handle))
    rules = config.phase_budget(config.curriculum.phases[-1])
    return Asked(examination, rules, gate.samples, gate.temperature, episodes_at_once(config.rollout))


def join_ray(config: RunConfig, stack: AsyncExitStack) -> None:
    """A Ray of this machine or of the cluster, left with the stack; one that this process has joined already is left as it is."""
    import ray

    from medr3.run.services import connect_ray

    if not ray.is_initialized():
        connect_ray(config)
        stack.callback(ray.shutdown)


def built_index(order: Order) -> HybridIndex:
    """The index of the material's literature, built once."""
    return index_of(order.out / INDEX, order.material, order.gate.config.retrieval if order.gate.config else RetrievalConfig())


def index_of(folder: Path, material: Material, config: RetrievalConfig) -> HybridIndex:
    from retrieval_service.manifest import IndexRefused

    try:
        HybridIndex.build(material.documents.values(), folder, config)  # leaves an identical one as it is
        return HybridIndex.load(folder, config)
    except IndexRefused as error:
        raise UserError(str(error)) from None
