"""Held-out accuracy: the same engines, protocol and retrieval as training, one greedy episode per question."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from actors.messages import GroupRequest, GroupSummary, GroupVoided
from actors.pool import RolloutPool
from curriculum.config import PhaseConfig
from medr3.config import RunConfig
from tasks.questions import Question
from tasks.world import Universe

ATTEMPTS = 3  # an engine may die during an evaluation as well; what fails three times is no accident
QUESTIONS_PER_CALL = 25  # one call costs milliseconds, and a failed one asks all of its questions again


@dataclass(frozen=True)
class Score:
    """What one evaluation found. `by_kind` is accuracy per answer kind."""

    accuracy: float
    n: int
    by_kind: dict[str, float]
    strong_evidence: float  # share of cited documents of levels I and II; 0 where nothing was cited
    searches: float  # per question
    finishes: dict[str, int]


class Examiner:
    """Asks held-out questions. The world that decides plateaus is never the one that is reported."""

    def __init__(self, pool: RolloutPool, config: RunConfig, universe: Universe) -> None:
        self._pool, self._config = pool, config
        self._questions = {
            (purpose, phase.name): _mixture(universe, purpose, phase, count)
            for purpose, count in (("probe", config.evaluation.probe_questions), ("test", config.evaluation.test_questions))
            for phase in config.curriculum.phases
        }

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
        calls = [requests[start : start + QUESTIONS_PER_CALL] for start in range(0, len(requests), QUESTIONS_PER_CALL)]
        summaries = [summary for answered in await asyncio.gather(*map(self._examined, calls)) for summary in answered]
        by_kind: dict[str, list[bool]] = {}
        finishes: dict[str, int] = {}
        for question, summary in zip(questions, summaries, strict=True):
            by_kind.setdefault(question.kind.value, []).append(summary.correct[0])
            for finish, count in summary.finishes.items():
                finishes[finish] = finishes.get(finish, 0) + count
        cited = [level for summary in summaries for level in summary.evidence_levels]
        return Score(
            accuracy=sum(summary.correct[0] for summary in summaries) / len(summaries),
            n=len(summaries),
            by_kind={kind: sum(hits) / len(hits) for kind, hits in sorted(by_kind.items())},
            strong_evidence=sum(1 for level in cited if 1 <= level <= 2) / len(cited) if cited else 0.0,
            searches=sum(summary.searches for summary in summaries) / len(summaries),
            finishes=finishes,
        )

    async def _examined(self, requests: list[GroupRequest]) -> list[GroupSummary]:
        for _ in range(ATTEMPTS):
            try:
                return await self._pool.examine(requests)
            except GroupVoided as error:
                reason = str(error)
        raise GroupVoided(f"evaluation: {len(requests)} questions failed {ATTEMPTS} times, at last with: {reason}")


def _mixture(universe: Universe, purpose: str, phase: PhaseConfig, count: int) -> list[Question]:
    total = sum(phase.mixture.values())
    found: list[Question] = []
    for source, weight in phase.mixture.items():
        found += universe.held_out[purpose].questions(source, round(count * weight / total))
    return found
