"""One evaluation: prepare and refuse, start, ask every setting, measure, write, end."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.failures import PoolDied
from actors.messages import GroupRequest, GroupVoided
from actors.rollout import EXAMINATION, searcher_for
from actors.tokens import EpisodeTokenizer
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.asking import Examination, ask, episodes_at_once
from medr3.evaluation.datasets import is_of_world, load_questions
from medr3.evaluation.disputes import disputes_of
from medr3.evaluation.endpoint import EndpointConfig, EndpointFailed, EndpointPolicy
from medr3.evaluation.figures import measure
from medr3.evaluation.lookup import require_gold, with_gold, with_one_search
from medr3.evaluation.results import Asked, Cell, Result
from medr3.evaluation.serving import EndpointExamination, engines, retrieval
from medr3.evaluation.settings import Setting
from medr3.evaluation.targets import Target
from medr3.evaluation.writing import finish, write
from medr3.evaluation.written import WrittenText
from medr3.run.services import connect_ray, index_hash, prepare_index
from retrieval_service.types import RetrievalError
from tasks.questions import Question
from tasks.world import Universe

TELL_EVERY_S = 5.0


@dataclass(frozen=True)
class Order:
    """What is to be evaluated, on what, and how. Exactly one of `target` and `endpoint`."""

    config: RunConfig
    datasets: list[str]
    settings: list[Setting]
    questions: int | None
    seed: int
    out: Path
    target: Target | None = None
    endpoint: EndpointConfig | None = None
    tokenizer: Path | None = None  # whose chat template an endpoint's prompts are put into


@dataclass
class _Prepared:
    order: Order
    universe: Universe
    questions: list[Question]
    work: Path
    index: Path | None
    model: Path | None
    told: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr, flush=True))


def evaluate(order: Order) -> Result:
    """Leaves `order.out` complete, or not at all. What cannot be done is a UserError of one line."""
    if order.out.exists():
        raise UserError(f"{order.out} exists: name a new folder with --out")
    work = order.out.with_name(order.out.name + ".unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        result = asyncio.run(_evaluated(_prepared(order, work)))
        for scratch in ("model", "index", "run"):
            shutil.rmtree(work / scratch, ignore_errors=True)
        write(work, result)
        finish(work, order.out)
    except (PoolDied, GroupVoided, RetrievalError, EndpointFailed) as error:
        raise UserError(f"the evaluation failed: {' '.join(str(error).split())}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def _prepared(order: Order, work: Path) -> _Prepared:
    config = order.config
    universe = Universe.build(config.world, config.run.seed)
    questions = load_questions(order.datasets, universe, order.questions, order.seed)
    if order.target is None or order.target.run is None:
        config.run.folder = work / "run"  # whatever has to be made for this evaluation goes with it
    for setting in order.settings[:1]:  # a mode holds for the whole sweep
        config.retrieval.mode = setting.mode or config.retrieval.mode
    if any(setting.retrieval == "oracle" for setting in order.settings):
        require_gold(questions)
    config.retrieval.http_port = 0  # which a run that trains may have
    config.rollout.colocated = False  # there is no learner to make room for
    model = order.target.prepare(work) if order.target else None
    if model is not None:
        _check_lengths(questions, model, config.rollout.engine.max_model_len)
    if order.tokenizer is not None:
        _template(order.tokenizer)
    return _Prepared(order, universe, questions, work, _index(order, universe, questions), model)


def _index(order: Order, universe: Universe, questions: list[Question]) -> Path | None:
    """The index that searches go to, or that gold documents come from; None where neither is wanted."""
    config = order.config
    searched = any(setting.retrieval in ("on", "once") for setting in order.settings)
    gold = any(setting.retrieval == "oracle" for setting in order.settings) and any(not q.context for q in questions)
    if not searched and not gold:
        return None
    strange = [name for name in order.datasets if not is_of_world(name)]
    if strange and not config.retrieval.index:
        raise UserError(
            f"--dataset {strange[0]}: the world's literature says nothing about it: add retrieval.index=FOLDER of a built index,"
            " or --retrieval closed"
        )
    return prepare_index(config, universe)


async def _evaluated(prepared: _Prepared) -> Result:
    order, started = prepared.order, time.time()
    async with AsyncExitStack() as stack:
        if order.target is not None or _searches(order):
            await _with_ray(order.config, stack, prepared.told)
        handle = None
        if prepared.index is not None and _searches(order):
            handle = await stack.enter_async_context(retrieval(prepared.index, order.config))
        examination, at_once = await _examination(prepared, handle, stack)
        cells = [await _cell(prepared, setting, examination, at_once, handle) for setting in order.settings]
    name, model = (order.target.name, order.target.model) if order.target else _named(order.endpoint)
    return Result(
        target=name, model=model, datasets=order.datasets, seed=order.seed, started_at=started, wall_s=time.time() - started,
        index_hash=index_hash(prepared.index) if prepared.index else "", questions=list(map(Asked.of, prepared.questions)),
        cells=cells,
    )  # fmt: skip


async def _examination(prepared: _Prepared, handle: Any, stack: AsyncExitStack) -> tuple[Examination, int]:
    """Who answers, and how many episodes it takes at once."""
    order = prepared.order
    if order.target is not None:
        assert prepared.model is not None, "a target has a folder once it is prepared"
        prepared.told(f"starting {order.config.rollout.num_engines} engine(s)")
        pool = engines(order.config, prepared.universe, prepared.model, order.target.version, handle)
        return await stack.enter_async_context(pool), episodes_at_once(order.config.rollout)
    assert order.endpoint is not None, "an order has a target or an endpoint"
    text = WrittenText()
    render = _template(order.tokenizer) if order.tokenizer else str
    policy = await stack.enter_async_context(EndpointPolicy(order.endpoint, text, render))
    return EndpointExamination(
        policy, text, handle, order.config.retrieval
    ), 4 * order.endpoint.concurrency  # while a call's last episodes end, others go on


async def _cell(prepared: _Prepared, setting: Setting, examination: Examination, at_once: int, handle: Any) -> Cell:
    order, config = prepared.order, prepared.order.config
    budgets = {question.source: setting.budget(config, question.source) for question in prepared.questions}
    questions = prepared.questions
    if setting.retrieval == "oracle":
        questions = with_gold(questions, prepared.index)
    elif setting.retrieval == "once":
        top_k = {source: budget.top_k for source, budget in budgets.items()}
        questions = await with_one_search(questions, searcher_for(handle, config.retrieval), config.retrieval.mode, top_k)
    if prepared.model is not None and questions is not prepared.questions:
        await asyncio.to_thread(_check_lengths, questions, prepared.model, config.rollout.engine.max_model_len)
    requests = [
        GroupRequest(
            run_id=config.run.name, group_id=f"eval/{question.id}", attempt=0, phase="eval", question=question, n=setting.samples,
            temperature=setting.temperature, seed=zlib.crc32(f"{order.seed}/{question.id}".encode()),
            budget=budgets[question.source], recipe=EXAMINATION,
        )
        for question in questions
    ]  # fmt: skip
    progress = _Progress(setting.name, len(requests) * setting.samples, prepared.told)
    records = await ask(examination, requests, at_once, progress)
    known = disputes_of(prepared.universe, prepared.questions)
    metrics = measure(list(map(Asked.of, prepared.questions)), records, known, order.seed)
    accuracy = metrics["accuracy"]
    prepared.told(f"{setting.name}: accuracy {accuracy['mean']:.3f} ({accuracy['low']:.3f}–{accuracy['high']:.3f})")
    return Cell(setting=setting, metrics=metrics, records=records)


def _check_lengths(questions: list[Question], model: Path, max_model_len: int) -> None:
    """What no engine could answer is told before anything is started, or, where documents were added, before the first is asked."""
    tokenizer = EpisodeTokenizer.from_folder(str(model))
    for question in questions:
        length = len(tokenizer.prompt(question))
        if not 0 < length < max_model_len:
            raise UserError(
                f"question {question.id} has a prompt of {length} tokens, the engine's context holds {max_model_len}: add"
                f" rollout.engine.max_model_len={2 * length}, or leave the question out"
            )


class _Progress:
    """How far it is, now and then."""

    def __init__(self, name: str, total: int, told: Callable[[str], None]) -> None:
        self._name, self._total, self._told, self._done, self._last = name, total, told, 0, time.monotonic()

    def __call__(self, episodes: int) -> None:
        self._done += episodes
        if time.monotonic() - self._last > TELL_EVERY_S:
            self._last = time.monotonic()
            self._told(f"{self._name}: {self._done:,} of {self._total:,} episodes")


def _template(folder: Path) -> Callable[[str], str]:
    """A question in a model's chat template, as text. The server puts the first token of a text before it itself."""
    from tasks.tokenizer import load_tokenizer

    tokenizer: Any = load_tokenizer(checked_tokenizer(folder))
    start = tokenizer.bos_token or ""

    def render(content: str) -> str:
        messages = [{"role": "user", "content": content}]
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text.removeprefix(start)

    return render


def checked_tokenizer(folder: Path) -> Path:
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"--tokenizer {folder}: has no tokenizer_config.json: name the folder of the model's tokenizer")
    return folder


def _searches(order: Order) -> bool:
    return any(setting.retrieval in ("on", "once") for setting in order.settings)


def _named(endpoint: EndpointConfig | None) -> tuple[str, str]:
    assert endpoint is not None, "an order has a target or an endpoint"
    return endpoint.url, f"{endpoint.model} by {endpoint.api}"


async def _with_ray(config: RunConfig, stack: AsyncExitStack, told: Callable[[str], None]) -> None:
    """A Ray that this process has joined already is used and left as it is."""
    import ray

    if ray.is_initialized():
        return
    told("starting Ray")
    await asyncio.to_thread(connect_ray, config)

    async def end() -> None:
        await asyncio.to_thread(ray.shutdown)

    stack.push_async_callback(end)
