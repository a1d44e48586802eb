"""`medr3 data coldstart`: a teacher answers questions by searching, and what is worth learning from becomes a student's episodes.

::

    questions ─▶ open-ended ─▶ guided ─▶ teacher ◀─▶ searches, some failing on purpose ─▶ filters ─▶ student's tokens ─▶ Parquet
                                          └ oracle, or a server's model                     └─▶ rejected.jsonl, by reason
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from actors.config import EpisodeBudget
from actors.episodes import EpisodeRunner, Policy
from actors.messages import GroupRequest, GroupVoided
from actors.rollout import EXAMINATION
from actors.teaching.filters import FilterRules, executed_calls, fault
from actors.teaching.guidance import guided
from actors.teaching.noise import NoisySearcher, ToolNoise
from actors.teaching.oracle import OraclePolicy
from actors.teaching.retelling import by_steps, retold
from actors.tokens import EpisodeTokenizer
from actors.tools import Searcher
from medr3.errors import UserError
from medr3.evaluation.endpoint import EndpointConfig, EndpointFailed, EndpointPolicy
from medr3.evaluation.serving import ANY_LENGTH
from medr3.evaluation.written import WrittenText
from medr3.json_file import ANEW, as_written, read_object
from retrieval_service.types import RetrievalError
from tasks.open_ended import as_open
from tasks.questions import AnswerKind, Question
from tasks.tokenizer import load_tokenizer
from trajectories.schema import Episode, to_table

QUESTIONS_AT_ONCE = 64
FAILURES_IN_A_ROW = 8  # questions of an endpoint that does not answer: it is gone, and the rest would fail as well
STATE, REJECTED, SUMMARY = "state.json", "rejected.jsonl", "coldstart.json"
PHASE = "cold_start"
NOISE, RULES = ToolNoise(), FilterRules()
SHOWN_CHARACTERS = 2_000  # of a rejected episode
Say = Callable[[str], None]
Searching = Callable[[], AbstractAsyncContextManager[Searcher]]


@dataclass(frozen=True)
class Lesson:
    """How episodes are made. All of it decides what comes out, so a restart must not change it."""

    samples: int = 1
    temperature: float = 0.0
    top_k: int = 5
    mode: str = "hybrid"
    max_searches: int = 10
    max_turn_tokens: int = 2_048
    hint: bool = True
    per_step: bool = False
    seed: int = 0
    noise: ToolNoise = NOISE
    rules: FilterRules = RULES

    @property
    def budget(self) -> EpisodeBudget:
        return EpisodeBudget(
            max_searches=self.max_searches, top_k=self.top_k, max_turn_tokens=self.max_turn_tokens,
            max_response_tokens=2 * self.rules.max_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class School:
    """Who teaches what, where it is looked up, and in whose tokens it is written."""

    questions: Sequence[Question]
    phrases: dict[str, str]
    student: Path  # folder of a tokenizer
    out: Path
    lesson: Lesson
    endpoint: EndpointConfig | None = None  # none: the oracle teaches
    name: dict[str, object] = field(default_factory=dict)  # what else a restart must not change


def teach(school: School, searching: Searching, say: Say) -> dict[str, object]:
    """Leaves Parquet files of episodes in the folder, and goes on with what is there. `searching` opens the searcher."""
    try:
        return asyncio.run(_Course(school, say).run(searching))
    except (EndpointFailed, RetrievalError) as error:
        raise UserError(f"coldstart: {' '.join(str(error).split())}; the same command goes on from there") from None


class _Course:
    def __init__(self, school: School, say: Say) -> None:
        self._school, self._say = school, say
        self._text = WrittenText()
        self._written = EpisodeTokenizer(self._text)
        tokenizer: Any = load_tokenizer(school.student)
        self._student = EpisodeTokenizer(tokenizer)
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        self.counts: Counter[str] = Counter()
        self._failures = 0

    async def run(self, searching: Searching) -> dict[str, object]:
        school = self._school
        done = self._resume()
        async with searching() as searcher, self._teacher() as policy:
            while done < len(school.questions):
                chunk = school.questions[done : done + QUESTIONS_AT_ONCE]
                lessons = await asyncio.gather(*(self._answered(policy, searcher, question) for question in chunk))
                self._write(done // QUESTIONS_AT_ONCE, [row for rows in lessons for row in rows[0]], [r for _, r in lessons])
                done += len(chunk)
                self._keep_state(done)
                self._say(f"{done:,} of {len(school.questions):,} questions: {self._told()}")
        summary = self.summary()
        (school.out / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return summary

    def summary(self) -> dict[str, object]:
        counts = self.counts
        kept = counts["kept"]
        rejected = {name.removeprefix("rejected: "): n for name, n in sorted(counts.items()) if name.startswith("rejected: ")}
        return {
            "questions": counts["questions"], "episodes": kept, "rows": counts["rows"], "rejected": rejected,
            "calls_mean": counts["calls"] / kept if kept else 0.0, "with_failed_calls": counts["noisy"],
            "made_open_ended": counts["open"], "teacher": self._school.endpoint.model if self._school.endpoint else "oracle",
        }  # fmt: skip

    def _told(self) -> str:
        summary = self.summary()
        rejected = summary["rejected"]
        assert isinstance(rejected, dict), "rejections are counted by reason"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items()) or "none"
        return f"{self.counts['kept']:,} episodes with {summary['calls_mean']:.2f} calls; rejected: {reasons}"

    @asynccontextmanager
    async def _teacher(self) -> AsyncIterator[Policy]:
        school = self._school
        if school.endpoint is not None:
            async with EndpointPolicy(school.endpoint, self._text) as policy:
                yield policy
            return
        oracle = OraclePolicy(self._text, school.phrases)
        for question in school.questions:
            oracle.add(question)
        yield oracle

    async def _answered(self, policy: Policy, searcher: Searcher, asked: Question) -> tuple[list[Episode], list[str]]:
        """A question's kept rows, and what became of the rest."""
        self.counts["questions"] += 1
        question = asked
        if question.kind is AnswerKind.CHOICE and (opened := as_open(question)) is not None:
            question = opened
            self.counts["open"] += 1
        lesson = self._school.lesson
        posed = guided(question, self._school.phrases, hint=lesson.hint) if self._school.endpoint else question
        if isinstance(policy, OraclePolicy):
            policy.add(posed)
        noisy = NoisySearcher(searcher, lesson.noise, f"{lesson.seed}/{question.id}")
        runner = EpisodeRunner(policy, self._written, noisy, lesson.mode, ANY_LENGTH)
        request = GroupRequest(
            run_id=PHASE, group_id=f"{PHASE}/{question.id}", attempt=0, phase=PHASE, question=posed, n=lesson.samples,
            temperature=lesson.temperature, seed=zlib.crc32(f"{lesson.seed}/{question.id}".encode()), budget=lesson.budget,
            recipe=EXAMINATION,
        )  # fmt: skip
        try:
            episodes = await runner.run(request)
            self._failures = 0
        except (EndpointFailed, GroupVoided) as error:
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW:
                raise EndpointFailed(f"{self._failures} questions in a row failed; the last: {error}") from None
            return [], [self._refused(question, "failed", str(error))]
        return self._sorted(episodes, question)

    def _sorted(self, episodes: list[Episode], question: Question) -> tuple[list[Episode], list[str]]:
        rows: list[Episode] = []
        refused: list[str] = []
        for episode in episodes:
            learned = retold(episode, question, self._text.decode, self._student.prompt(question), self._encode)
            if reason := fault(learned, question, self._school.lesson.rules):
                refused.append(self._refused(question, reason, episode.text))
                continue
            learned.correct, learned.reward = True, 1.0
            calls = executed_calls(learned)
            self.counts.update(kept=1, calls=calls, noisy=calls < len(learned.searches))
            rows += by_steps(learned) if self._school.lesson.per_step else [learned]
        self.counts["rows"] += len(rows)
        return rows, refused

    def _refused(self, question: Question, reason: str, text: str) -> str:
        self.counts[f"rejected: {reason}"] += 1
        return json.dumps({"question": question.id, "reason": reason, "text": text[:SHOWN_CHARACTERS]}, ensure_ascii=False)

    def _write(self, part: int, rows: list[Episode], refused: list[list[str]]) -> None:
        path = self._school.out / f"episodes-{part:05d}.parquet"
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(to_table(rows), unfinished, compression="zstd")
        unfinished.replace(path)
        with (self._school.out / REJECTED).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for lines in refused for line in lines)

    def _fingerprint(self) -> dict[str, object]:
        school = self._school
        return {
            "questions": len(school.questions), "first": school.questions[0].id, "student": str(school.student),
            "teacher": school.endpoint.model if school.endpoint else "oracle", "lesson": repr(school.lesson), **school.name,
        }  # fmt: skip

    def _keep_state(self, done: int) -> None:
        size = (self._school.out / REJECTED).stat().st_size
        state = {"done": done, "rejected": size, "counts": dict(self.counts), "made": self._fingerprint()}
        unfinished = self._school.out / f"{STATE}.unfinished"
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        unfinished.replace(self._school.out / STATE)

    def _resume(self) -> int:
        """How many questions are done. Part files are named by their place, so one that the state does not count is written over."""
        out = self._school.out
        out.mkdir(parents=True, exist_ok=True)
        if not (out / STATE).exists():
            (out / REJECTED).write_text("", encoding="utf-8")
            return 0
        state = read_object(out / STATE, ANEW)
        with as_written(out / STATE, ANEW):
            for name, value in self._fingerprint().items():
                if state["made"].get(name) != value:
                    raise UserError(f"{out}: was begun with {name} {state['made'].get(name)!r}, not {value!r}: {ANEW}")
            with (out / REJECTED).open("r+b") as file:
                file.truncate(state["rejected"])
            self.counts = Counter(state["counts"])
            return int(state["done"])
