"""Batches written down by their shape: a prompt token, then turns of some tokens, each followed by a document of some tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from learner.batch import NO_TURN, EpisodeBatch


class Turn(NamedTuple):
    tokens: int
    document: int = 0
    process: float = 0.0


def batch_of(episodes: list[list[Turn]], outcomes: list[float], groups: list[int]) -> EpisodeBatch:
    """Every model token carries loss; token ids, versions and log-probabilities mean nothing. Rewards are outcomes and turns' shares."""
    turn_t: list[int] = []
    process_t: list[float] = []
    offsets = [0]
    for turns in episodes:
        turn_t.append(NO_TURN)
        process_t.append(0.0)
        for number, turn in enumerate(turns):
            turn_t += [number] * turn.tokens + [NO_TURN] * turn.document
            process_t += [0.0] * (turn.tokens - 1) + [turn.process] + [0.0] * turn.document
        offsets.append(len(turn_t))
    zeros = np.zeros(len(turn_t), np.int32)
    return EpisodeBatch(
        offsets=np.array(offsets),
        token_ids_t=zeros,
        loss_mask_t=np.array(turn_t) >= 0,
        behaviour_t=np.zeros(len(turn_t), np.float32),
        generation_t=zeros + 1,
        number_t=zeros,
        turn_t=np.array(turn_t, np.int32),
        process_t=np.array(process_t, np.float32),
        reward_e=np.array(
            [outcome + sum(turn.process for turn in turns) for outcome, turns in zip(outcomes, episodes, strict=True)],
            np.float32,
        ),
        temperature_e=np.ones(len(outcomes), np.float32),
        group_e=np.array(groups, np.int64),
    )


@st.composite
def batches(draw: st.DrawFn, min_episodes: int = 1) -> EpisodeBatch:
    """Up to seven episodes of up to three turns in up to three groups; quarters, so that rewards are often equal."""
    quarters = st.integers(-8, 8).map(lambda quarter: quarter / 4)
    turns = st.builds(Turn, st.integers(1, 4), st.integers(0, 3), quarters)
    episodes = draw(st.lists(st.lists(turns, min_size=1, max_size=3), min_size=min_episodes, max_size=7))
    outcomes, groups = ([draw(values) for _ in episodes] for values in (quarters, st.integers(0, 2)))
    return batch_of(episodes, outcomes, groups)
