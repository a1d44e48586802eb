"""What the learner's benchmark runs in processes of their own: ranks that train together, and steps whose memory is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.harness import timed
from bench.workload import SMALL, batch_of, prepared, random_model, sampled, search_episodes, settings, shape, step
from learner.model import make_policy, shard
from learner.optimizer import apply_gradient, make_adamw
from learner.trainer import PolicyTrainer

DISTRIBUTED = search_episodes([512, 448, 384, 256] * 2)  # 3,200 tokens
LARGE = shape(hidden=256, layers=2, heads=4, kv_heads=2, ffn=768, vocabulary=150_000)
LARGE_EPISODES = search_episodes([256] * 8)  # of one length, so that padding has no part in the comparison


def train_as_rank(rank: int, ranks: int, store: Path) -> Callable[[], float]:
    """One FSDP rank of one thread, over gloo."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    config = settings()
    mesh = init_device_mesh("cpu", (ranks,))
    batch = sampled(batch_of(DISTRIBUTED, SMALL.vocab_size), make_policy(random_model(SMALL), config), config)
    trainer = PolicyTrainer(shard(make_policy(random_model(SMALL), config), mesh, config), config)
    return timed(lambda: step(trainer, batch))


def large_step() -> Callable[[], object]:
    """The learner's step at a large vocabulary."""
    torch.set_num_threads(1)
    config = settings()
    policy, batch = prepared(LARGE, LARGE_EPISODES, config)
    trainer = PolicyTrainer(policy, config)
    return lambda: step(trainer, batch)


def all_logits_step() -> Callable[[], object]:
    """The same rows the plain way: all logits, their log-softmax, the chosen tokens, the same optimiser."""
    torch.set_num_threads(1)
    config = settings()
    causal_lm, batch = random_model(LARGE).train(), batch_of(LARGE_EPISODES, LARGE.vocab_size)
    optimizer, rows = make_adamw(causal_lm, config), len(batch)
    token_ids_bl = torch.from_numpy(batch.token_ids_t.astype("int64")).view(rows, -1)
    chosen_bl = torch.from_numpy(batch.loss_mask_t).view(rows, -1)[:, 1:]

    def run() -> None:
        logprobs_blv = causal_lm(token_ids_bl).logits[:, :-1].float().log_softmax(-1)
        logprobs_bl = logprobs_blv.gather(-1, token_ids_bl[:, 1:, None])[..., 0]
        (-logprobs_bl[chosen_bl].mean()).backward()
        apply_gradient(optimizer, 1e-7, config.gradient_clip)

    return run
