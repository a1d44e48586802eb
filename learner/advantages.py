"""How much better an episode did than the other episodes of its question."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroupAdvantages(NamedTuple):
    """One advantage per episode, and whether the rewards of its group differ at all."""

    advantages_e: NDArray[np.float32]
    informative_e: NDArray[np.bool_]


def group_advantages(rewards_e: NDArray[np.float32], group_e: NDArray[np.int64], epsilon: float) -> GroupAdvantages:
    """A_i = (r_i − mean(r)) / (std(r) + ε) over the group of i, as GRPO and DAPO have it; std is the population's.

    A group of equal rewards, a group of one included, has advantage exactly 0: it is found by comparing, because the mean of
    equal floats may differ from them by a rounding error that the division would blow up.

    Example:
        >>> group_advantages(np.float32([1, 0, 5, 5]), np.array([0, 0, 1, 1]), 1e-6).advantages_e.round(3).tolist()
        [1.0, -1.0, 0.0, 0.0]
    """
    groups = int(group_e.max()) + 1 if len(group_e) else 0
    rewards = rewards_e.astype(np.float64)
    count_g = np.maximum(np.bincount(group_e, minlength=groups), 1)
    centred_e = rewards - (np.bincount(group_e, rewards, groups) / count_g)[group_e]
    std_g = np.sqrt(np.bincount(group_e, centred_e**2, groups) / count_g)
    lowest_g, highest_g = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(lowest_g, group_e, rewards)
    np.maximum.at(highest_g, group_e, rewards)
    informative_e = (lowest_g < highest_g)[group_e]
    advantages_e = np.where(informative_e, centred_e / (std_g[group_e] + epsilon), 0.0)
    return GroupAdvantages(advantages_e.astype(np.float32), informative_e)
