"""What each token's loss weighs in the one sum over all workers and micro-batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.algorithms import Aggregation
from learner.batch import EpisodeBatch


def token_weights(
    batch: EpisodeBatch, rows: NDArray[np.int64], aggregation: Aggregation, constant: int | None
) -> NDArray[np.float32]:
    """w with loss = Σ w_t·L_t over the chosen tokens of `rows`, a whole minibatch; 0 elsewhere.

    Made from the whole minibatch, and so the same however it is packed, split or spread. With N chosen tokens in E episodes:
    token_mean 1/N (DAPO, arXiv 2503.14476), sequence_mean 1/(E·|o_e|) (DeepSeekMath, arXiv 2402.03300), constant 1/(E·constant)
    (Dr. GRPO, arXiv 2503.20783). An episode without chosen tokens does not count.
    """
    episode_t = batch.per_token(np.arange(len(batch)))
    chosen_t = batch.loss_mask_t & np.isin(episode_t, rows)
    length_e = np.bincount(episode_t[chosen_t], minlength=len(batch))
    tokens, episodes = max(1, int(length_e.sum())), max(1, int((length_e > 0).sum()))
    match aggregation:
        case "token_mean":
            weight_e = np.full(len(batch), 1 / tokens)
        case "sequence_mean":
            weight_e = 1 / (episodes * np.maximum(length_e, 1))
        case "constant":
            assert constant is not None, "the configuration asks for it"
            weight_e = np.full(len(batch), 1 / (episodes * constant))
    return np.where(chosen_t, weight_e[episode_t], 0).astype(np.float32)
