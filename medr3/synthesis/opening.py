"""What `medr3 data coldstart` opens before it teaches: questions, the words of their relations, and where to search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from actors.rollout import searcher_for
from actors.tools import Searcher
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.serving import retrieval
from medr3.json_file import read_object
from medr3.synthesis.gate import IndexSearcher
from medr3.synthesis.producing import CORPUS, INDEX, PHRASES_FILE, join_ray
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex, IndexRefused
from tasks.corpora import read_corpus
from tasks.questions import Question
from tasks.reading import read_questions
from tasks.rows import FileRefused

Searching = Callable[[], AbstractAsyncContextManager[Searcher]]


def open_questions(path: Path, count: int | None, *, by_oracle: bool) -> list[Question]:
    """The file's questions; refused where an oracle would have no way to go by."""
    try:
        questions = list(read_questions(path))[:count]
    except FileRefused as error:
        raise UserError(str(error)) from None
    blind = [question.id for question in questions if not question.reference_graphs]
    if by_oracle and blind:
        raise UserError(
            f"{path}: {len(blind):,} questions have no reference graph, the first is {blind[0]}: the oracle has no way to go by;"
            " name a model that searches, with --endpoint"
        )
    return questions


def open_phrases(questions: Path) -> dict[str, str]:
    """How the corpus puts its relations, as synthesize left it beside the questions."""
    path = questions.parent / PHRASES_FILE
    if not path.is_file():
        return {}
    found = read_object(path)
    return {str(relation): str(phrase) for relation, phrase in found.items()}


def open_search(questions: Path, corpus: Path | None, index: Path | None, config: RunConfig | None) -> Searching:
    """The service under a run configuration, or an index of this process; built from the corpus where there is none yet."""
    settings = config.retrieval if config else RetrievalConfig()
    literature = corpus or questions.parent / CORPUS
    folder = index or literature.parent / INDEX
    if not folder.is_dir() and not literature.is_file():
        raise UserError(
            f"{folder}: is no index, and {literature} no corpus to build one from: name one with --index or --corpus"
        )
    try:
        if not folder.is_dir():
            HybridIndex.build(read_corpus(literature), folder, settings)
        if config is not None:
            return partial(_served, folder, config)
        return partial(_local, HybridIndex.load(folder, settings))
    except (IndexRefused, FileRefused) as error:
        raise UserError(str(error)) from None


@asynccontextmanager
async def _local(index: HybridIndex) -> AsyncIterator[Searcher]:
    yield IndexSearcher(index)


@asynccontextmanager
async def _served(folder: Path, config: RunConfig) -> AsyncIterator[Searcher]:
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(join_ray, config, stack)
        handle = await stack.enter_async_context(retrieval(folder, config))
        yield searcher_for(handle, config.retrieval)
