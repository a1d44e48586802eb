"""A trainer out of a model folder and settings: what every rank of a run, of a replay and of a benchmark starts with."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from learner.algorithms import resolve
from learner.config import LearnerConfig
from learner.loading import load_sharded
from learner.model import Critic, Policy, make_critic, make_policy, shard
from learner.trainer import PolicyTrainer


def assemble(model_dir: Path, config: LearnerConfig, device: torch.device) -> PolicyTrainer:
    """Sharded over the ranks of the process group, which all call it: the policy, and the reference and critic that it needs."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))

    def policy(settings: LearnerConfig) -> Policy:
        def build(causal_lm: PreTrainedModel) -> Policy:
            return shard(make_policy(causal_lm, settings), mesh, settings)

        return load_sharded(model_dir, build, device, offload=settings.cpu_offload)

    def critic() -> Critic:
        def build(causal_lm: PreTrainedModel) -> Critic:
            return shard(make_critic(causal_lm, config), mesh, config)

        return load_sharded(model_dir, build, device, offload=config.cpu_offload)

    reference = policy(config.model_copy(update={"lora": None})) if config.kl_coefficient > 0 else None
    return PolicyTrainer(
        policy(config), config, reference=reference, critic=critic() if resolve(config).needs_critic else None, device=device
    )
