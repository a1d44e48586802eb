"""Who tries a question before it is asked: what it gets right more than half the time is too easy, and is written anew.

::

    Reader     searches for every sentence of the question, then for what it found, and puts together what it read: no model
    Asked      a policy's engines, or a server's model, examined as in an evaluation
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from actors.config import EpisodeBudget
from actors.messages import GroupRequest
from actors.rollout import EXAMINATION
from medr3.evaluation.asking import Examination, ask
from medr3.evaluation.lookup import LONGEST_QUERY
from retrieval_service.index import HybridIndex
from retrieval_service.types import Hit, SearchQuery, SearchResult
from tasks.graph.knowledge import Statement
from tasks.graph.oracle import masked_plan
from tasks.graph.pattern import Told, TooMany, answers
from tasks.graph.wording import statements_in
from tasks.questions import AnswerKind, Question

MOST_QUERIES = 32  # of a reader's later rounds
UNKNOWN_LEVEL = 7  # weaker than all known ones
TOO_EASY = 0.5  # MedResearcher-R1's bound: a solver that is right more often makes the question be written anew


class Solver(Protocol):
    """Whoever tries questions."""

    async def right(self, questions: Sequence[Question]) -> list[float]:
        """The share of tries at each question that were right."""
        ...


class IndexSearcher:
    """A searcher over an index of this process: it answers as a replica of the service would. What is asked at once goes together."""

    def __init__(self, index: HybridIndex) -> None:
        self._index = index
        self._waiting: list[tuple[SearchQuery, asyncio.Future[SearchResult]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def search(self, query: SearchQuery) -> SearchResult:
        answer: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, answer))
        if len(self._waiting) == 1:  # whoever comes first sends for all that come in the same turn of the loop
            task = asyncio.create_task(self._send())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await answer

    async def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            results = await asyncio.to_thread(self._index.search, [query for query, _ in waiting])
        except Exception as error:  # whatever it is, those that wait are told, or they would wait for ever
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in zip(waiting, results, strict=True):
            if not answer.done():
                answer.set_result(result)


class Reader:
    """Searches and reads in so many rounds: right where as many searches in a row as that find all that is needed.

    It is lenient to itself: it knows which relations to look for, and where documents contradict each other it takes the strongest.
    """

    def __init__(self, index: HybridIndex, phrases: Mapping[str, str], rounds: int = 2, top_k: int = 5) -> None:
        self._index, self._phrases, self._rounds, self._top_k = index, phrases, rounds, top_k

    async def right(self, questions: Sequence[Question]) -> list[float]:
        return await asyncio.to_thread(lambda: [float(self._solves(question)) for question in questions])

    def _solves(self, question: Question) -> bool:
        clues, asked = masked_plan(question)
        relations = sorted({clue.relation for clue in clues})
        texts = [question.text[:LONGEST_QUERY], *(part.strip() for part in question.text.split(". ") if part.strip())]
        hits: dict[str, Hit] = {}
        searched: set[str] = set()
        for _ in range(self._rounds):
            queries = [
                SearchQuery(query=text, k=self._top_k, mode="lexical", collection=question.collection) for text in texts if text
            ]
            searched.update(texts)
            hits |= {hit.id: hit for result in self._index.search(queries) for hit in result.hits}
            told = self._read(hits.values(), relations)
            found = {name for stated in told for name in (stated.subject, stated.object)}
            texts = sorted(found - searched)[:MOST_QUERIES]
        try:
            fits = answers(clues, asked, Told(told))
        except TooMany:
            return False
        return fits == {question.reference_graphs[0][-1][2] if question.kind is AnswerKind.NUMBER else question.gold}

    def _read(self, hits: Iterable[Hit], relations: list[str]) -> list[Statement]:
        """What the documents say of each subject and relation, by the strongest of them."""
        strongest: dict[tuple[str, str], tuple[int, Statement]] = {}
        for hit in hits:
            for stated in statements_in(hit.text, hit.id, relations, self._phrases):
                key = (stated.subject, stated.relation)
                if key not in strongest or (hit.evidence_level or UNKNOWN_LEVEL) < strongest[key][0]:
                    strongest[key] = (hit.evidence_level or UNKNOWN_LEVEL), stated
        return [stated for _, stated in strongest.values()]


class Asked:
    """A model, by the same protocol and rules as in an evaluation."""

    def __init__(self, examination: Examination, budget: EpisodeBudget, samples: int, temperature: float, at_once: int) -> None:
        self._examination, self._budget, self._at_once = examination, budget, at_once
        self._samples, self._temperature = samples, temperature

    async def right(self, questions: Sequence[Question]) -> list[float]:
        requests = [
            GroupRequest(
                run_id="gate", group_id=f"gate/{question.id}", attempt=0, phase="gate", question=question, n=self._samples,
                temperature=self._temperature, seed=zlib.crc32(question.id.encode()), budget=self._budget, recipe=EXAMINATION,
            )
            for question in questions
        ]  # fmt: skip
        records = await ask(self._examination, requests, self._at_once, lambda done: None)
        right = dict.fromkeys((question.id for question in questions), 0)
        for record in records:
            right[record.question_id] += record.correct
        return [right[question.id] / self._samples for question in questions]
