"""Documents put into the prompt before the model is asked: the gold ones, or what one search with the question alone finds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds

from actors.tools import Searcher
from medr3.errors import UserError
from retrieval_service.index import DOCUMENTS_FILE
from retrieval_service.types import SearchQuery
from tasks.questions import Document, Question

LONGEST_QUERY = 10_000  # characters; the retrieval service's own bound


def require_gold(questions: Sequence[Question]) -> None:
    """Refuses questions that come without documents and name none."""
    without = [question.id for question in questions if not question.context and not question.gold_documents]
    if without:
        raise UserError(
            f"--retrieval oracle: {len(without)} of {len(questions)} questions name no gold documents, the first is {without[0]}"
        )


def with_gold(questions: Sequence[Question], index: Path | None) -> list[Question]:
    """Each question with its gold documents, unless it comes with documents already."""
    require_gold(questions)
    bare = [question for question in questions if not question.context]
    known = _documents({name for question in bare for name in question.gold_documents}, index) if bare else {}
    for question in bare:
        if lost := [name for name in question.gold_documents if name not in known]:
            raise UserError(f"--retrieval oracle: question {question.id}: document {lost[0]!r} is not in the index {index}")
    return [
        question if question.context else _shown(question, [known[name] for name in question.gold_documents])
        for question in questions
    ]


async def with_one_search(
    questions: Sequence[Question], searcher: Searcher, mode: str, top_k: dict[str, int]
) -> list[Question]:
    """Each question with what its text finds. The options are no part of the query: MIRAGE's question-only retrieval."""

    async def found(question: Question) -> Question:
        query = SearchQuery(
            query=question.text[:LONGEST_QUERY], k=top_k[question.source], mode=mode, collection=question.collection
        )
        result = await searcher.search(query)
        return _shown(question, [Document(id=hit.id, text=hit.text, title=hit.title) for hit in result.hits])

    return list(await asyncio.gather(*map(found, questions)))


def _shown(question: Question, documents: list[Document]) -> Question:
    return question.model_copy(update={"context": (*question.context, *documents)})


def _documents(names: set[str], index: Path | None) -> dict[str, Document]:
    if index is None:
        return {}
    table = ds.dataset(index / DOCUMENTS_FILE, format="ipc").to_table(["id", "text"], filter=pc.field("id").isin(sorted(names)))
    return {row["id"]: Document(id=row["id"], text=row["text"]) for row in table.to_pylist()}
