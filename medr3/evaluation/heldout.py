"""Held-out accuracy: the same engines, protocol and retrieval as training, one greedy episode per question."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from actors.messages import Examined, GroupRequest
from curriculum.config import PhaseConfig
from medr3.config import RunConfig
from medr3.evaluation.asking import Examination, ask, episodes_at_once
from medr3.evaluation.disputes import Dispute, Rested, disputes_of, rested
from medr3.phase_questions import held_out_questions
from tasks.questions import Question
from tasks.world import Universe

STRONG = (1, 2)  # evidence levels: meta-analyses and randomised trials


@dataclass(frozen=True)
class Score:
    """What one evaluation found. `by_kind` is accuracy per answer kind."""

    accuracy: float
    n: int
    by_kind: dict[str, float]
    strong_evidence: float  # share of cited documents of levels I and II; 0 where nothing was cited
    searches: float  # per question
    finishes: dict[str, int]
    rested: Rested  # on which side of the contradictions that were met
    correct: dict[str, bool] = field(default_factory=dict)  # by question id

    @classmethod
    def of(cls, questions: list[Question], records: list[Examined], known: dict[str, list[Dispute]]) -> Score:
        """One record per question, in the same order; `known` are the contradictions of their world."""
        by_kind: dict[str, list[bool]] = {}
        for question, record in zip(questions, records, strict=True):
            by_kind.setdefault(question.kind.value, []).append(record.correct)
        cited = [level for record in records for level in record.cited_levels]
        return cls(
            accuracy=sum(record.correct for record in records) / len(records),
            n=len(records),
            by_kind={kind: sum(hits) / len(hits) for kind, hits in sorted(by_kind.items())},
            strong_evidence=sum(level in STRONG for level in cited) / len(cited) if cited else 0.0,
            searches=sum(record.searches for record in records) / len(records),
            finishes=dict(Counter(record.finish for record in records)),
            rested=rested(records, known),
            correct={record.question_id: record.correct for record in records},
        )


class Examiner:
    """Asks held-out questions. The world that decides plateaus is never the one that is reported."""

    def __init__(self, examination: Examination, config: RunConfig, universe: Universe) -> None:
        self._examination, self._config = examination, config
        self._questions = {
            (purpose, phase.name): held_out_questions(universe.asked(purpose), phase, count)
            for purpose, count in (("probe", config.evaluation.probe_questions), ("test", config.evaluation.test_questions))
            for phase in config.curriculum.phases
        }
        self._disputes = disputes_of(universe, [question for asked in self._questions.values() for question in asked])

    async def probe(self, phase: PhaseConfig) -> Score:
        """The score that the curriculum sees."""
        return await self._ask(phase, self._questions["probe", phase.name], phase.retrieval)

    async def report(self, phase: PhaseConfig, *, retrieval: bool = True) -> Score:
        """The score that is reported, on a world of its own; `retrieval=False` closes the book."""
        return await self._ask(phase, self._questions["test", phase.name], phase.retrieval and retrieval)

    async def _ask(self, phase: PhaseConfig, questions: list[Question], retrieval: bool) -> Score:
        budget = self._config.phase_budget(phase).model_copy(update={"retrieval": retrieval})
        requests = [
            GroupRequest(
                run_id=self._config.run.name, group_id=f"eval/{question.id}", attempt=0, phase=phase.name, question=question,
                n=1, temperature=0.0, seed=0, budget=budget, recipe=self._config.rewards[phase.reward],
            )
            for question in questions
        ]  # fmt: skip
        records = await ask(self._examination, requests, episodes_at_once(self._config.rollout))
        return Score.of(questions, records, self._disputes)
