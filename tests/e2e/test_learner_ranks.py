"""One, two and four real ranks of FSDP2 over gloo make the same weights; adapters and a critic included."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from learner.assembly import assemble
from learner.batch import read_batch
from learner.config import LearnerConfig, LoraSettings
from learner.placement import whole_tensor
from tests.learner_episodes import sample_group, tiny_model, tiny_model_dir
from trajectories.schema import WeightVersion

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STEPS = 3
VARIANTS = {
    "grpo": LearnerConfig(microbatch_tokens=128),
    "checkpointed": LearnerConfig(microbatch_tokens=128, activation_checkpointing=True),
    "gspo": LearnerConfig(microbatch_tokens=128, algorithm="gspo", kl_coefficient=0.1, entropy_coefficient=0.01),
    "lora": LearnerConfig(microbatch_tokens=128, lora=LoraSettings(rank=4, alpha=16)),
    "ppo": LearnerConfig(microbatch_tokens=128, algorithm="ppo", kl_coefficient=0.05),
}


def batch_of(step: int):
    """Five groups of three: an odd number, so that no two ranks ever get the same work."""
    return read_batch([sample_group(tiny_model(), 10 * step + group, n=3) for group in range(5)])


def train(config: LearnerConfig, model_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    trainer = assemble(model_dir, config, torch.device("cpu"))
    for step in range(STEPS):
        metrics = trainer.step(batch_of(step), step=step, current=WeightVersion(1, step), learning_rate=5e-3)
    weights = {
        f"{role}.{name}": whole_tensor(parameter).clone()
        for role, (module, _) in trainer.trained.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    return weights, {name: value for name, value in metrics.items() if "second" not in name}


def rank_main(rank: int, ranks: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for name, config in VARIANTS.items():
        weights, metrics = train(config, folder / "model")
        if rank == 0:
            measured = {f"metric.{key}": torch.tensor(value, dtype=torch.float64) for key, value in metrics.items()}
            save_file({key: value.contiguous() for key, value in (weights | measured).items()}, folder / f"{name}-{ranks}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_model_dir(folder / "model")
    for ranks in (1, 2, 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start_processes(rank_main, (ranks, port, folder), nprocs=ranks, start_method="spawn")
    return {(name, ranks): load_file(folder / f"{name}-{ranks}") for name in VARIANTS for ranks in (1, 2, 4)}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_any_number_of_ranks_makes_the_same_weights_and_metrics(results, name, ranks):
    one, many = results[name, 1], results[name, ranks]
    assert one.keys() == many.keys()
    for key, value in one.items():
        np.testing.assert_allclose(many[key], value, atol=2e-5 if key[:6] != "metric" else 1e-4, rtol=1e-3, err_msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_learned_something(results, name):
    start = {f"policy.causal_lm.{key}": value for key, value in tiny_model().named_parameters()}
    moved = [
        float((value - start.get(key, 0)).detach().abs().max())
        for key, value in results[name, 1].items()
        if key[:6] == "policy"
    ]
    assert max(moved) > 1e-3


def test_recomputed_activations_change_nothing(results):
    for ranks in (1, 2):
        plain, recomputed = results["grpo", ranks], results["checkpointed", ranks]
        assert all(torch.equal(plain[key], recomputed[key]) for key in plain if key[:6] == "policy")
