"""The episode protocol as a state machine without I/O: tokens in, the next thing to do out.

```
 <think> … <search> q </search> [<document> … </document> …] … </think> <answer> … </answer>
```
Whoever carries it out asks `next()` and answers with `on_tokens` or `on_documents` until `next()` says `Finish`. Token in,
token out: the engine's ids are kept as they came and never re-tokenised, only the observation's own tokens are appended, so
each prompt is exactly the previous prompt and its output, continued.

With `answer_tokens`, an episode whose budget or whose searches are used up is not cut off in thought: the protocol itself writes
`</think> <answer>`, which is not the model's and never trained, and the model gets those tokens for its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from actors.config import EpisodeBudget
from actors.grammar import FORCED, Meaning, Place, Turn, read_turn
from actors.repetition import repeats_itself
from actors.tokens import TagReader
from tasks.prompting import CALL_OPEN, SEARCH_OPEN, THINK_OPEN
from tasks.questions import Question
from trajectories.schema import Episode, Segment, Source, VersionSpan
from trajectories.schema import Search as SearchRecord

# The retrieval service's own bound on a query: a longer one is no query but a model that rambles.
MAX_QUERY_CHARACTERS = 10_000

PARALLEL = "||"  # between the queries of one turn
SEARCH = "search"  # the tool that searches are recorded under


class FinishReason(StrEnum):
    """Why an episode ended. Every episode has exactly one."""

    ANSWER = "answer"
    FORCED = "forced"  # an answer as well, but the protocol had to close the thinking
    MALFORMED = "malformed"  # out of the grammar, or a search or call where none is allowed
    BUDGET = "budget"  # a turn or the whole response ran out of tokens
    SEARCHES = "searches"  # one search or call more than allowed
    LOOP = "loop"  # the same search or call again, or a turn that says the same over and over


@dataclass(frozen=True, slots=True)
class Generate:
    """Sample at most `max_tokens` after `prompt_ids`, none of the forbidden ones, ending with (and keeping) the first stop."""

    prompt_ids: list[int]
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    forbidden_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """Ask the retrieval service, for several queries at once where the model asked so, then call `on_documents`."""

    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Ask another tool, then call `on_documents`."""

    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more to do."""

    reason: FinishReason


Action = Generate | Search | Call | Finish


class EpisodeProtocol:
    """One episode. It never raises on what a model wrote, only on an engine or a caller that breaks the contract.

    Example: a whole episode with one search. The engine is a script, the library a dictionary; yours may be anything.
        >>> from actors.tokens import TagIds
        >>> words = "<eos> <think> </think> <search> </search> <document> </document> <answer> </answer> dose lomab ? 42".split()
        >>> def ids(text): return [words.index(word) for word in text.split()]
        >>> tags = TagIds(dict(enumerate(words[1:9], 1)), end_of_text=0, decode=lambda ids: " ".join(words[i] for i in ids))
        >>> script = iter(["<think> <search> dose lomab </search>", "42 </think> <answer> 42 </answer>"])
        >>> library = {"dose lomab": "dose 42"}

        >>> episode = EpisodeProtocol(tags, prompt_ids=ids("dose lomab ?"), budget=EpisodeBudget())
        >>> while not isinstance(action := episode.next(), Finish):
        ...     if isinstance(action, Generate):
        ...         sampled = ids(next(script))  # an engine continues action.prompt_ids
        ...         episode.on_tokens(sampled, [-0.1] * len(sampled), [VersionSpan(1, 0, 0, len(sampled))])
        ...     elif isinstance(action, Search):
        ...         found = library[action.queries[0]]
        ...         record = SearchRecord(episode.turn, action.queries[0], ["d1"], [found], [1.0], [1], "index", 0.0)
        ...         episode.on_documents(ids(f"<document> {found} </document>"), record)
        >>> action.reason.value, episode.answer
        ('answer', '42')

        >>> question = Question(id="q1", text="dose lomab ?", kind="number", gold="42")
        >>> row = episode.to_episode(question, run_id="r", group_id="g", episode_id="e", attempt=0, phase="p")
        >>> row.text
        '<think> <search> dose lomab </search> <document> dose 42 </document> 42 </think> <answer> 42 </answer>'
        >>> [(segment.source, segment.end - segment.start) for segment in row.segments], sum(row.loss_mask)
        ([('prompt', 3), ('model', 5), ('document', 4), ('model', 5)], 10)
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
        self._asked: set[tuple[str, str]] = set()  # (tool, words)
        self._place = _place_after(tags, prompt_ids)
        self._turn = -1
        self._thrown_away = 0
        self._unread: list[int] = []  # of an answer that its turn's budget cut in two: the first part
        self._answering = False  # no more thinking: the reserve is in use
        self._forced = False
        places = [place for place in FORCED if place is not Place.CALL or budget.tools] if budget.answer_tokens else []
        self._bridges = {place: tags.spell(FORCED[place]) for place in places}
        self._forbidden = tags.single_tokens((SEARCH_OPEN, CALL_OPEN)) if budget.forbid_search else ()
        self.answer = ""
        self._next: Action = self._begin_turn()

    def next(self) -> Action:
        """What to do now; the same answer until it is done."""
        return self._next

    def on_tokens(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        version_spans: Sequence[VersionSpan],
        answers: Generate | None = None,
    ) -> None:
        """Takes one whole turn from the engine. `version_spans` count from the turn's first token and cover all of them.

        A malformed turn is thrown away while the budget allows it: `next()` then says the same as before. Who hands back in `answers`
        the very action that was carried out has answers that come late or twice refused.
        """
        if not isinstance(self._next, Generate):
            raise RuntimeError(f"tokens arrived while the episode waits for {self._next}")
        if answers is not None and answers is not self._next:
            raise RuntimeError("tokens arrived for a request that was answered before")
        if len(token_ids) > self._next.max_tokens or len(logprobs) != len(token_ids):
            got = f"{len(token_ids)} tokens with {len(logprobs)} log-probabilities"
            raise ValueError(f"the engine returned {got} for a request of {self._next.max_tokens}")
        _check_spans(version_spans, len(token_ids))
        written = [*self._unread, *token_ids]
        turn = read_turn(self._tags.pieces(written), self._place)
        if self._is_malformed(turn) and self._thrown_away < self._budget.regenerations:
            self._thrown_away += 1
            self._next = replace(self._next)  # equal, but another request
            return
        self._append_model_tokens(token_ids, logprobs, version_spans)
        self._thrown_away = 0
        self._next = self._after_turn(turn, written)

    def on_documents(self, observation_ids: Sequence[int], *records: SearchRecord) -> None:
        """Takes what a search or call found, one record per query. An observation that leaves no room is not appended, and its
        records then hold no documents: the model was not shown any.
        """
        if not isinstance(self._next, Search | Call):
            raise RuntimeError(f"documents arrived while the episode waits for {self._next}")
        expected = len(self._next.queries) if isinstance(self._next, Search) else 1
        if len(records) != expected:
            raise ValueError(f"{len(records)} records arrived for {expected} queries")
        if len(observation_ids) >= self._room() - self._reserve(Place.THINK):
            self._searches += map(_without_documents, records)
            self._next = self._force_answer(FinishReason.BUDGET)
            return
        self._searches += records
        self._append_given(Source.DOCUMENT, observation_ids)
        self._next = self._begin_turn()

    def admitted(self, document_ids: Sequence[str]) -> list[int]:
        """Which of the documents found, by position, the episode may still be shown."""
        seen = {name for search in self._searches for name in search.document_ids}
        new: list[int] = []
        for i, name in enumerate(document_ids):
            if not (self._budget.distinct_passages and name in seen):
                new.append(i)
                seen.add(name)
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

    def _reserve(self, place: Place) -> int:
        """What a turn that begins in `place` must leave, so that an answer can be forced wherever it ends."""
        bridges = [len(self._bridges[at]) for at in self._bridges if at is place or at is not Place.START]
        return self._budget.answer_tokens + max(bridges, default=0)

    def _begin_turn(self) -> Action:
        allowed = min(self._budget.max_turn_tokens, self._room() - self._reserve(self._place))
        if allowed <= 0:
            return self._force_answer(FinishReason.BUDGET)
        self._turn += 1
        return self._ask_for(allowed)

    def _force_answer(self, reason: FinishReason) -> Action:
        """Brings the model to its answer, with the reserve for it; where that cannot be, the end for the reason given."""
        bridge = self._bridges.get(self._place, [])
        allowed = min(self._budget.answer_tokens, self._room() - len(bridge))
        if self._answering or allowed <= 0:
            return Finish(reason)
        if bridge:
            self._append_given(Source.PROMPT, bridge)
            self._place, self._forced = Place.ANSWER, True
        self._answering = True
        self._turn += 1
        return self._ask_for(allowed)

    def _ask_for(self, max_tokens: int) -> Generate:
        tags = self._tags
        return Generate(list(self._ids), max_tokens, tags.stop_token_ids, tags.stop_strings, self._forbidden)

    def _queries(self, content: str) -> list[str]:
        return [part.strip() for part in content.split(PARALLEL)] if self._budget.parallel_searches > 1 else [content]

    def _is_malformed(self, turn: Turn) -> bool:
        """Out of the grammar, or a search or call that this budget never allows."""
        if turn.meaning in (Meaning.SEARCH, Meaning.CALL) and (not self._budget.retrieval or self._budget.forbid_search):
            return True
        if turn.meaning is Meaning.SEARCH:
            return any(not 0 < len(query) <= MAX_QUERY_CHARACTERS for query in self._queries(turn.content))
        if turn.meaning is Meaning.CALL:
            return _call(turn.content).tool not in self._budget.tools or len(turn.content) > MAX_QUERY_CHARACTERS
        return turn.meaning is Meaning.MALFORMED

    def _after_turn(self, turn: Turn, written: list[int]) -> Action:
        """What follows a turn that counts."""
        began, self._place, self._unread = self._place, turn.place, []
        if self._is_malformed(turn):
            return Finish(FinishReason.MALFORMED)
        if turn.meaning is Meaning.ANSWER:
            self.answer = turn.content
            return Finish(FinishReason.FORCED if self._forced else FinishReason.ANSWER)
        if turn.meaning is Meaning.SEARCH:
            return self._unless_too_many(Search(tuple(self._queries(turn.content))))
        if turn.meaning is Meaning.CALL:
            return self._unless_too_many(_call(turn.content))
        if repeats_itself(written):
            return Finish(FinishReason.LOOP)
        following = self._force_answer(FinishReason.BUDGET)
        if turn.place in (Place.THOUGHT, Place.ANSWER):  # the answer goes on: its parts are read together
            self._place, self._unread = began, written
        return following

    def _unless_too_many(self, action: Search | Call) -> Action:
        """The action, unless it was asked for before or is one more than allowed."""
        queries = action.queries if isinstance(action, Search) else (action.arguments,)
        tool = SEARCH if isinstance(action, Search) else action.tool
        asked = {(tool, " ".join(query.casefold().split())) for query in queries}
        if asked & self._asked or len(asked) < len(queries):
            return Finish(FinishReason.LOOP)
        if len(self._asked) + len(asked) > self._budget.max_searches or len(asked) > self._budget.parallel_searches:
            return self._force_answer(FinishReason.SEARCHES)
        self._asked |= asked
        return action

    def _append_given(self, source: Source, token_ids: Sequence[int]) -> None:
        """Tokens that the model did not sample."""
        if token_ids:
            start = len(self._ids)
            self._ids.extend(token_ids)
            self._logprobs.extend([0.0] * len(token_ids))
            self._segments.append(Segment(source.value, start, len(self._ids), self._turn))

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


def _call(content: str) -> Call:
    name, *arguments = content.split(maxsplit=1)
    return Call(name, arguments[0] if arguments else "")


def _without_documents(record: SearchRecord) -> SearchRecord:
    return replace(record, document_ids=[], documents=[], scores=[], evidence_levels=[])


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
