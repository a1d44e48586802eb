"""Compiled decoder layers compute what plain ones do. Here and not among the unit tests, because a C compiler takes its time."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from learner.batch import read_batch
from learner.config import LearnerConfig
from learner.model import make_policy
from learner.packing import Bin, flatten
from tests.learner_episodes import sample_group, tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler")]


def test_compiled_layers_score_alike_and_are_compiled_for_all_lengths():
    batch = read_batch([sample_group(tiny_model(), group) for group in range(3)])
    policy, plain = (make_policy(tiny_model(), LearnerConfig(compile=compiled)) for compiled in (True, False))
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for episodes in ([0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10]):
        micro = flatten(batch, Bin(np.array(episodes)))
        found, expected = policy(micro)[0], plain(micro)[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for module, score in ((policy, found), (plain, expected)):
            module.zero_grad()
            score.sum().backward()
        for one, other in zip(policy.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1:] == graphs[1:2] * 3, "a second length may ask for a general kernel, a third may not"
