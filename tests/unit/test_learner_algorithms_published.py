"""The numbers of other implementations on one fixed input: 13 tokens of four episodes in two groups.

They were computed by running verl 0.8.0.dev (commit b178a3c), OpenRLHF 0.11.0 (commit 3c3be62) and TRL 1.13.0 in float64; each
case says which. Process supervision has no implementation to run: its numbers are worked out by hand in
test_learner_algorithms_advantages.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from learner import losses
from learner.advantages import token_advantages
from learner.config import AlgorithmConfig
from learner.correction import correct
from learner.objective import TOTALS_PER_TOKEN, TOTALS_SUMMED, TokenBatch, objective
from learner.weighting import token_weights
from tests.learner_batches import Turn, batch_of

BATCH = batch_of([[Turn(2, 2), Turn(2)], [Turn(3)], [Turn(1, 1), Turn(3)], [Turn(2)]], [1.0, 0.2, 0.5, -0.3], [0, 0, 1, 1])
CHOSEN = np.flatnonzero(BATCH.loss_mask_t)
EPISODE = torch.tensor(BATCH.per_token(np.arange(4))[CHOSEN])
OLD = torch.tensor([-0.9, -1.2, -0.4, -2.0, -0.7, -1.5, -0.3, -1.1, -0.2, -0.8, -2.5, -0.6, -1.9], dtype=torch.float64)
NEW = torch.tensor([-0.6, -1.9, -0.4, -1.2, -1.5, -1.0, -0.5, -0.1, -0.25, -1.4, -2.4, -0.1, -1.8], dtype=torch.float64)
NEAR = OLD + 1e-4 * torch.tensor([1, 3, -2, 8, -5, -1, -9, 4, 2, 3, -1, 3, 6], dtype=torch.float64)
ENGINE = torch.tensor([-0.8, -1.3, -0.6, -1.1, -0.7, -1.4, -0.9, -1.6, -0.2, -0.6, -2.9, -0.5, -2.2], dtype=torch.float64)
REFERENCE = torch.tensor([-0.7, -1.0, -0.5, -1.8, -1.2, -1.1, -0.4, -0.6, -0.3, -0.9, -2.2, -0.2, -2.0], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -1.0, 0.7, -0.7], dtype=torch.float64)[EPISODE]
VALUES = np.array([0.3, 0.5, 0.1, 0.6, 0.2, -0.1, 0.4, 0.7, 0.3, 0.2, 0.5, -0.2, 0.1])
NEW_VALUES = np.array([0.5, 0.2, 0.4, 0.9, 0.1, -0.5, 0.3, 0.6, 0.8, 0.0, 0.55, 0.3, 0.2])
PENALTY = np.array([0.01, 0.03, -0.02, 0.0, 0.02, 0.05, -0.01, 0.04, 0.0, 0.01, 0.02, -0.03, 0.01])
RETURNS = [0.5109632, 0.59856, 0.848, 1.0, 0.086704, 0.1732, 0.21, 0.260551, 0.342432, 0.4256, 0.48, -0.1752, -0.31]


def on_all_tokens(values_n):
    values_t = np.full(len(BATCH.token_ids_t), 99.0, np.float32)  # documents and prompts must not be read
    values_t[CHOSEN] = values_n
    return values_t


def per_episode(*values_e):
    return [values_e[e] for e in EPISODE.tolist()]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # verl and OpenRLHF divide by the deviation of a sample, which in a group of two is √2 times the population's.
        ({"advantage": "group"}, np.sqrt(2) * np.array(per_episode(0.7071055, -0.7071055, 0.7071055, -0.7071055))),
        ({"advantage": "group_mean"}, per_episode(0.4, -0.4, 0.4, -0.4)),  # verl without std, OpenRLHF dr_grpo
        ({"advantage": "leave_one_out"}, per_episode(0.8, -0.8, 0.8, -0.8)),  # verl and OpenRLHF rloo
    ],
)
def test_group_advantages_are_those_of_verl_and_openrlhf(settings, expected):
    found = token_advantages(BATCH, AlgorithmConfig(**settings)).advantages_t[CHOSEN]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        (
            "batch",  # OpenRLHF reinforce
            [1.2123866, 1.2349669, 1.3027077, 1.2575472, -0.6843559, -0.6391954, -0.526294, -0.0295281, 0.0607929, 0.0607929,
             0.0833732, -1.6327272, -1.700468],
        ),
        (
            "batch_baseline",  # OpenRLHF reinforce_baseline
            [0.7886865, 0.8144477, 0.891731, 0.8402088, -1.3752474, -1.3237251, -1.1949195, 0.6598809, 0.7629254, 0.7629254,
             0.7886865, -1.1691584, -1.2464418],
        ),
    ],
)  # fmt: skip
def test_batch_advantages_are_those_of_openrlhf(advantage, expected):
    settings = AlgorithmConfig(algorithm="reinforce_pp", advantage=advantage)
    found = token_advantages(BATCH, settings, penalty_t=on_all_tokens(PENALTY)).advantages_t[CHOSEN]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gae_is_verls():
    settings = AlgorithmConfig(algorithm="ppo", gae_gamma=0.9, gae_lambda=0.8, whiten=False)
    found = token_advantages(BATCH, settings, values_t=on_all_tokens(VALUES), penalty_t=on_all_tokens(PENALTY))
    np.testing.assert_allclose(found.returns_t[CHOSEN], RETURNS, atol=1e-6)
    np.testing.assert_allclose(found.advantages_t[CHOSEN], RETURNS - VALUES, atol=1e-6)


def test_the_value_loss_is_verls_and_openrlhfs():
    loss = losses.value_loss(*map(torch.tensor, (NEW_VALUES, VALUES, np.array(RETURNS))), 0.2)
    assert loss.mean().item() == pytest.approx(0.07528053, abs=1e-7)


def tokens(settings, logprobs, reference=None):
    weights_t = token_weights(BATCH, np.arange(4), settings.aggregation, settings.max_loss_tokens).astype(np.float64)
    return TokenBatch(
        logprobs_n=logprobs.clone().requires_grad_(), entropy_n=torch.zeros_like(OLD), old_n=OLD, behaviour_n=ENGINE,
        advantages_n=ADVANTAGES, weights_n=torch.tensor(weights_t[CHOSEN]), episode_n=EPISODE, episodes=4, reference_n=reference,
    )  # fmt: skip


CLIPPED = {"clip_low": 0.2, "clip_high": 0.28, "correction": "none"}
TOKEN_MEAN = [0.0, -0.0381989, -0.0769231, 0.0, 0.0, 0.1268247, 0.0629793, 0.0, -0.05122, -0.0295514, -0.0595092, 0.0887773,
              0.0595092]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "logprobs", "loss", "gradient"),
    [
        pytest.param({**CLIPPED, "aggregation": "token_mean"}, NEW, -0.1216198, TOKEN_MEAN, id="verl vanilla, TRL dapo"),
        pytest.param(
            {**CLIPPED, "aggregation": "sequence_mean"}, NEW, 0.0897386,
            [0.0, -0.0310366, -0.0625, 0.0, 0.0, 0.1373934, 0.0682276, 0.0, -0.0416163, -0.0240105, -0.0483512, 0.1442631,
             0.0967025],
            id="verl seq-mean-token-mean",
        ),
        pytest.param(
            {**CLIPPED, "clip_high": 0.2, "aggregation": "constant", "max_loss_tokens": 20}, NEW, -0.0170632,
            [0.0, -0.0062073, -0.0125, 0.0, 0.0, 0.020609, 0.0102341, 0.0, -0.0083233, -0.0048021, -0.0096702, 0.0144263,
             0.0096702],
            id="TRL dr_grpo",
        ),
        pytest.param(
            {**CLIPPED, "aggregation": "sequence_mean", "kl_coefficient": 0.1}, NEW, 0.096757,
            [0.0005948, -0.0401591, -0.0619052, 0.0028199, -0.0029155, 0.1381865, 0.0673511, 0.0024592, -0.0413115, -0.028065,
             -0.049735, 0.1454526, 0.0989683],
            id="TRL grpo with beta",
        ),
        pytest.param(
            {"algorithm": "gspo", "aggregation": "sequence_mean", "correction": "none"}, NEAR, -9.3744e-5,
            [*[-0.0625156] * 4, 0.0, 0.0, 0.0, *[-0.0437588] * 4, 0.0875394, 0.0875394],
            id="verl gspo",
        ),
        pytest.param(
            {"algorithm": "gspo", "aggregation": "sequence_mean", "correction": "none", "clip_low": 0.04, "clip_high": 0.05},
            NEW, 0.0299753, [*[0.0] * 11, 0.1181126, 0.1181126],
            id="TRL and OpenRLHF gspo",
        ),
        pytest.param(
            {**CLIPPED, "algorithm": "cispo", "aggregation": "token_mean"}, NEW, 0.2114824,
            [-0.0984615, -0.0615385, -0.0769231, -0.0984615, 0.0615385, 0.0984615, 0.0629793, -0.0689231, -0.05122, -0.0430769,
             -0.0595092, 0.0689231, 0.0595092],
            id="verl cispo",
        ),
        pytest.param(
            {"algorithm": "cispo", "aggregation": "token_mean", "clip_high": 0.5, "correction": "none"}, NEW, 0.1952724,
            [-0.1038353, -0.0381989, -0.0769231, -0.1153846, 0.0345638, 0.1153846, 0.0629793, -0.0807692, -0.05122, -0.0295514,
             -0.0595092, 0.0807692, 0.0595092],
            id="TRL cispo, no lower bound",
        ),
        pytest.param(
            {**CLIPPED, "aggregation": "token_mean", "correction": "token", "importance_cap": 1.5}, NEW, -0.1014489,
            [0.0, -0.0422163, -0.0939541, 0.0, 0.0, 0.1147557, 0.0944689, 0.0, -0.05122, -0.0241946, -0.0887773, 0.080329,
             0.080329],
            id="OpenRLHF tis",
        ),
        pytest.param(
            {**CLIPPED, "aggregation": "token_mean", "correction": "token", "mask_low": 0.7, "mask_high": 1.5}, NEW, -0.0525018,
            [0.0, -0.0422163, -0.0939541, 0.0, 0.0, 0.1147557, 0.0, 0.0, -0.05122, -0.0241946, -0.0887773, 0.080329, 0.080329],
            id="OpenRLHF icepop",
        ),
    ],
)  # fmt: skip
def test_losses_and_gradients_are_those_of_others(settings, logprobs, loss, gradient):
    config = AlgorithmConfig(**settings)
    given = tokens(config, logprobs, REFERENCE if config.kl_coefficient else None)
    found, _ = objective(given, config)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=2e-7)
    np.testing.assert_allclose(given.logprobs_n.grad, gradient, atol=2e-7)


def test_what_is_counted_has_its_name():
    """The tokens without gradient above are the clipped ones; what is masked, and the sums, by the loop."""
    config = AlgorithmConfig(**CLIPPED, aggregation="token_mean", mask_low=0.7, mask_high=1.5, mask_episode_high=1.05)
    given = dataclasses.replace(tokens(config, NEW, REFERENCE), entropy_n=torch.full_like(OLD, 0.5))
    loss, counts = objective(given, config)
    found = dict(zip((*TOTALS_SUMMED, *TOTALS_PER_TOKEN), counts.tolist(), strict=True))
    assert (found["clip_low"], found["clip_high"], found["clip_dual"]) == (1, 3, 0)
    assert found["clip_low"] + found["clip_high"] == TOKEN_MEAN.count(0.0)
    drifts = [(OLD - ENGINE)[e == EPISODE] for e in range(4)]
    outside = [float(drift.mean().exp()) > 1.05 for drift in drifts]
    assert found["masked_episodes"] == sum(outside) > 0
    assert found["masked_tokens"] == sum(
        out or not 0.7 <= float(x.exp()) <= 1.5 for out, drift in zip(outside, drifts, strict=True) for x in drift
    )
    assert found["entropy"] == 6.5
    assert found["kl_reference"] == pytest.approx(losses.kl_estimate("k3", NEW, REFERENCE).sum().item())
    assert found["loss"] == pytest.approx(loss.item()) == pytest.approx(found["surrogate"] / 13)  # no KL: its coefficient is 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("token", [0.9048374, 1.1051709, 1.2214028, 0.4065697, 1.0, 0.9048374, 1.3, 1.3, 1.0, 0.8187308, 1.3, 0.9048374, 1.3]),
        ("sequence", [*[0.4965853] * 4, *[1.3] * 7, 1.2214028, 1.2214028]),
    ],
)
def test_truncated_importance_is_verls(kind, expected):
    found = correct(kind, OLD, ENGINE, EPISODE, 4, AlgorithmConfig(importance_cap=1.3))
    np.testing.assert_allclose(found.weights_n, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.1, -0.9, 0.1, 0.6, -0.3, 0.1, -0.1, 0.5, 0.05, -0.5, -0.2, 0.1, 0.2]),
        ("k2", [0.005, 0.405, 0.005, 0.18, 0.045, 0.005, 0.005, 0.125, 0.00125, 0.125, 0.02, 0.005, 0.02]),
        ("k3", [0.0048374, 0.5596031, 0.0048374, 0.1488116, 0.0498588, 0.0048374, 0.0051709, 0.1065307, 0.0012294, 0.1487213,
                0.0214028, 0.0048374, 0.0187308]),
    ],
)  # fmt: skip
def test_kl_estimates_are_verls(estimator, expected):
    np.testing.assert_allclose(losses.kl_estimate(estimator, NEW, REFERENCE), expected, atol=1e-7)
