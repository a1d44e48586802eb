"""Spans become one value for each token whichever way they lie: the fast way against a loop over the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.batch import NO_TURN, NO_VERSION, read_batch
from trajectories.schema import Episode, Segment, TurnReward, VersionSpan, to_table

TOKENS = 8
Spans = st.lists(st.tuples(st.integers(0, TOKENS), st.integers(0, TOKENS)).map(sorted), max_size=4)


@st.composite
def rows(draw: st.DrawFn) -> Episode:
    sources = st.sampled_from(["prompt", "model", "document"])
    segments = [Segment(draw(sources), *span, draw(st.integers(0, 2))) for span in draw(Spans)]
    versions = [VersionSpan(draw(st.integers(0, 1)), draw(st.integers(0, 3)), *span) for span in draw(Spans)]
    turn_t = loop(segments)
    rewarded = [TurnReward(turn, "gain", draw(st.floats(-1, 1, width=32))) for turn in sorted(set(turn_t) - {NO_TURN})]
    return Episode(
        "run", "g", "g-0", "q", 0, "p", "s", "k", list(range(TOKENS)), [False] * TOKENS, [0.0] * TOKENS, segments, versions, [],
        turn_rewards=rewarded * draw(st.integers(0, 2)),
    )  # fmt: skip


def loop(segments: list[Segment]) -> list[int]:
    turn_t = [NO_TURN] * TOKENS
    for segment in segments:
        for token in range(segment.start, segment.end):
            turn_t[token] = segment.turn if segment.source == "model" else NO_TURN
    return turn_t


@given(st.lists(rows(), min_size=1, max_size=4), st.booleans())
def test_spans_mean_the_same_in_any_order(episodes: list[Episode], one_table: bool) -> None:
    batch = read_batch([to_table(episodes)] if one_table else [to_table([episode]) for episode in episodes])
    for number, episode in enumerate(episodes):
        own = slice(number * TOKENS, (number + 1) * TOKENS)
        turn_t, version_t, process_t = loop(episode.segments), [(NO_VERSION, NO_VERSION)] * TOKENS, np.zeros(TOKENS, np.float32)
        for span in episode.versions:
            version_t[span.start : span.end] = [(span.generation, span.number)] * (span.end - span.start)
        for reward in episode.turn_rewards:
            process_t[max(token for token in range(TOKENS) if turn_t[token] == reward.turn)] += np.float32(reward.value)
        assert batch.turn_t[own].tolist() == turn_t
        assert list(zip(batch.generation_t[own].tolist(), batch.number_t[own].tolist(), strict=True)) == version_t
        np.testing.assert_array_equal(batch.process_t[own], process_t)
