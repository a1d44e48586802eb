"""The episode protocol as a state machine without I/O: tokens in, the next thing to do out.

```
 <think> … <search> q </search> [<document> … </document> …] … </think> <answer> … </answer>
```
Whoever carries it out asks `next()` and answers with `on_tokens` or `on_documents` until `next()` says `Finish`. Token in,
token out: the engine's ids are kept as they came and never re-tokenised, only the observation's own tokens are appended, so
each prompt is exactly the previous prompt and its output, continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from actors.config import EpisodeBudget
from actors.grammar import Meaning, Place, Turn, read_turn
from actors.tokens import TagReader
from tasks.prompting import THINK_OPEN
from tasks.questions import Question
from trajectories.schema import Episode, Segment, Source, VersionSpan
from trajectories.schema import Search as SearchRecord

# The retrieval service's own bound on a query: a longer one is no query but a model that rambles.
MAX_QUERY_CHARACTERS = 10_000


class FinishReason(StrEnum):
    """Why an episode ended. Every episode has exactly one."""

    ANSWER = "answer"
    MALFORMED = "malformed"  # out of the grammar, or a search while retrieval is off
    BUDGET = "budget"  # a turn or the whole response ran out of tokens
    SEARCHES = "searches"  # one search more than allowed
    LOOP = "loop"  # the same search again


@dataclass(frozen=True, slots=True)
class Generate:
    """Sample at most `max_tokens` after `prompt_ids`, ending with (and keeping) the first stop."""

    prompt_ids: list[int]
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """Ask the retrieval service, then call `on_documents`."""

    query: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more to do."""

    reason: FinishReason


class EpisodeProtocol:
    """One episode. It never raises on what a model wrote, only on an engine or a caller that breaks the contract.

    Example:
        >>> from actors.tokens import TagIds
        >>> words = ["<eos>", "<think>", "</think>", "<answer>", "</answer>", "42", "?"]
        >>> tags = TagIds(dict(enumerate(words[1:5], 1)), end_of_text=0, decode=lambda ids: " ".join(words[i] for i in ids))
        >>> episode = EpisodeProtocol(tags, prompt_ids=[6], budget=EpisodeBudget())
        >>> episode.next().prompt_ids
        [6]
        >>> episode.on_tokens([1, 2, 3, 5, 4], [-0.1] * 5, [VersionSpan(1, 0, 0, 5)])
        >>> episode.next().reason.value, episode.answer
        ('answer', '42')
    """

    def __init__(self, tags: TagReader, prompt_ids: Sequence[int], budget: EpisodeBudget) -> None:
        self._tags = tags
        self._budget = budget
        self._prompt_length = len(prompt_ids)
        self._ids = list(prompt_ids)
        self._logprobs = [0.0] * len(prompt_ids)
        self._segments = [Segment(Source.PROMPT.value, 0, len(prompt_ids), -1)] if prompt_ids else []
        self._versions: list[VersionSpan] = []
        self._searches: list[SearchRecord] = []
        self._asked: set[str] = set()
        self._place = _place_after(tags, prompt_ids)
        self._turn = 0
        self._thrown_away = 0
        self.answer = ""
        self._next: Generate | Search | Finish = self._generate()

    def next(self) -> Generate | Search | Finish:
        """What to do now; the same answer until it is done."""
        return self._next

    def on_tokens(self, token_ids: Sequence[int], logprobs: Sequence[float], version_spans: Sequence[VersionSpan]) -> None:
        """Takes one whole turn from the engine. `version_spans` count from the turn's first token and cover all of them.

        A malformed turn is thrown away while the budget allows it: `next()` then says the same as before.
        """
        if not isinstance(self._next, Generate):
            raise RuntimeError(f"tokens arrived while the episode waits for {self._next}")
        if len(token_ids) > self._next.max_tokens or len(logprobs) != len(token_ids):
            got = f"{len(token_ids)} tokens with {len(logprobs)} log-probabilities"
            raise ValueError(f"the engine returned {got} for a request of {self._next.max_tokens}")
        _check_spans(version_spans, len(token_ids))
        turn = read_turn(self._tags.pieces(token_ids), self._place)
        then = self._after_turn(turn)
        if then == Finish(FinishReason.MALFORMED) and self._thrown_away < self._budget.regenerations:
            self._thrown_away += 1
            return
        self._append_model_tokens(token_ids, logprobs, version_spans)
        self._place, self._next, self._thrown_away = turn.place, then, 0

    def on_documents(self, observation_ids: Sequence[int], record: SearchRecord) -> None:
        """Takes what a search found. An observation that leaves no room for the model is recorded but not appended."""
        if not isinstance(self._next, Search):
            raise RuntimeError(f"documents arrived while the episode waits for {self._next}")
        self._searches.append(record)
        if len(observation_ids) >= self._room():
            self._next = Finish(FinishReason.BUDGET)
            return
        if observation_ids:
            start = len(self._ids)
            self._ids.extend(observation_ids)
            self._logprobs.extend([0.0] * len(observation_ids))
            self._segments.append(Segment(Source.DOCUMENT.value, start, len(self._ids), self._turn))
        self._turn += 1
        self._next = self._generate()

    def admitted(self, document_ids: Sequence[str]) -> list[int]:
        """Which of the documents found, by position, the episode may still be shown."""
        seen = {name for search in self._searches for name in search.document_ids}
        new = [i for i, name in enumerate(document_ids) if not (self._budget.distinct_passages and name in seen)]
        if self._budget.max_passages is None:
            return new
        shown = sum(len(search.document_ids) for search in self._searches)
        return new[: max(0, self._budget.max_passages - shown)]

    @property
    def turn(self) -> int:
        """The model's current turn, from 0."""
        return self._turn

    @property
    def attempt(self) -> int:
        """Which attempt at this turn it is, from 0."""
        return self._thrown_away

    def to_episode(
        self,
        question: Question,
        *,
        run_id: str,
        group_id: str,
        episode_id: str,
        attempt: int,
        phase: str,
        temperature: float = 1.0,
        started_at: float = 0.0,
        generate_s: float = 0.0,
        search_s: float = 0.0,
    ) -> Episode:
        """The finished episode as a trajectory row, rewards still empty."""
        if not isinstance(self._next, Finish):
            raise RuntimeError(f"episode {episode_id} is not finished: it waits for {self._next}")
        mask = [False] * len(self._ids)
        for segment in self._segments:
            if segment.source == Source.MODEL:
                mask[segment.start : segment.end] = [True] * (segment.end - segment.start)
        return Episode(
            run_id=run_id,
            group_id=group_id,
            episode_id=episode_id,
            question_id=question.id,
            attempt=attempt,
            phase=phase,
            source=question.source,
            kind=question.kind.value,
            token_ids=list(self._ids),
            loss_mask=mask,
            logprobs=list(self._logprobs),
            segments=list(self._segments),
            versions=list(self._versions),
            searches=list(self._searches),
            answer=self.answer,
            finish=self._next.reason.value,
            text=self._tags.text(self._ids[self._prompt_length :]),
            temperature=temperature,
            started_at=started_at,
            generate_s=generate_s,
            search_s=search_s,
        )

    def _room(self) -> int:
        return self._budget.max_response_tokens - (len(self._ids) - self._prompt_length)

    def _generate(self) -> Generate | Finish:
        allowed = min(self._budget.max_turn_tokens, self._room())
        if allowed <= 0:
            return Finish(FinishReason.BUDGET)
        return Generate(list(self._ids), allowed, self._tags.stop_token_ids, self._tags.stop_strings)

    def _after_turn(self, turn: Turn) -> Search | Finish:
        if turn.meaning is Meaning.ANSWER:
            self.answer = turn.content
            return Finish(FinishReason.ANSWER)
        if turn.meaning is Meaning.OPEN:
            return Finish(FinishReason.BUDGET)
        if turn.meaning is Meaning.MALFORMED or not self._budget.retrieval or len(turn.content) > MAX_QUERY_CHARACTERS:
            return Finish(FinishReason.MALFORMED)
        same_words = " ".join(turn.content.casefold().split())
        if same_words in self._asked:
            return Finish(FinishReason.LOOP)
        if len(self._asked) >= self._budget.max_searches:
            return Finish(FinishReason.SEARCHES)
        self._asked.add(same_words)
        return Search(turn.content)

    def _append_model_tokens(self, token_ids: Sequence[int], logprobs: Sequence[float], spans: Sequence[VersionSpan]) -> None:
        start = len(self._ids)
        if not token_ids:
            return
        self._ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        self._segments.append(Segment(Source.MODEL.value, start, len(self._ids), self._turn))
        self._versions += [
            VersionSpan(s.generation, s.number, start + s.start, start + s.end) for s in spans if s.end > s.start
        ]


def _check_spans(spans: Sequence[VersionSpan], tokens: int) -> None:
    reached = 0
    for span in spans:
        if span.start != reached or span.end < span.start:
            raise ValueError(f"weight-version span [{span.start}, {span.end}) does not continue at token {reached}")
        reached = span.end
    if reached != tokens:
        raise ValueError(f"weight versions cover {reached} of {tokens} tokens")


def _place_after(tags: TagReader, prompt_ids: Sequence[int]) -> Place:
    """Some chat templates end with an open `<think>`; the model then starts inside it."""
    pieces = [piece for piece in tags.pieces(prompt_ids) if piece.text.strip()]
    return Place.THINK if pieces and pieces[-1].is_tag and pieces[-1].text == THINK_OPEN else Place.START
