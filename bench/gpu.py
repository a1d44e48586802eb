"""The learner in bf16 on one accelerator: speed, memory, and that its ways to compute a step agree."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config

from bench.flops import matmul_seconds, step_flops, synchronise
from bench.harness import Result, figure, interleaved, rate, ratio, result, table, timed
from bench.workload import Segments, batch_of, random_model, sampled, search_episodes, settings, shape, step
from learner.batch import EpisodeBatch
from learner.config import LearnerConfig
from learner.model import Policy, make_policy, shard
from learner.packing import MicroBatch, flatten, plan_micro_batches
from learner.trainer import PolicyTrainer

UTILISATION = 0.45
# bf16 keeps 8 bits: one rounding is up to 2^-8 = 0.004 of a number, and a log-probability is made of logits of about 10. The means
# over tokens, and whole gradients, average that out; a wrong mask or position moves them by orders of magnitude more.
SAME_LOGPROBS, SAME_GRADIENT = 0.03, 0.05
# Checkpointing runs the same kernels on the same shapes again: only sums in no fixed order may differ.
SAME_RECOMPUTED = 0.005


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured: the model, the episodes of one step, the matrix product that is the peak."""

    model: Qwen2Config
    episodes: list[Segments]
    matmul: int


FULL = Size(
    shape(hidden=1536, layers=28, heads=12, kv_heads=2, ffn=8960, vocabulary=151_936),  # Qwen2.5-1.5B's
    search_episodes([1024, 896, 768, 640, 512, 512, 384, 256] + [400] * 8),  # 8,192 tokens
    matmul=8192,
)
SMOKE = Size(
    shape(hidden=64, layers=2, heads=4, kv_heads=2, ffn=128, vocabulary=512), search_episodes([64, 56, 48, 40] * 2), matmul=256
)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, so that the code itself is tried")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(words)
    if not arguments.smoke and not torch.cuda.is_available():
        print("bench/gpu.sh: this machine has no GPU that torch can use: try --smoke", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.smoke else "cuda")
    measured = run(SMOKE if arguments.smoke else FULL, device)
    print(json.dumps(measured, indent=2) if arguments.json else table(measured))
    # The share of arithmetic says nothing of a tiny model on a CPU; whether results agree must hold everywhere.
    held = [row for row in measured["ratios"] if not (arguments.smoke and row["name"] == "share of the device's arithmetic")]
    return 0 if all(row["reached"] for row in held) else 1


def run(size: Size, device: torch.device) -> Result:
    """Everything on one rank, sharded as a worker shards it, so that bf16 comes from FSDP's mixed precision."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        agreements = agreement(size, device)
        figures, ratios = speed(size, device)
    finally:
        dist.destroy_process_group()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return result(figures, ratios + agreements, device=name)


def speed(size: Size, device: torch.device) -> tuple[list[Result], list[Result]]:
    """A whole step, optimiser included, beside the peak of a matrix product in the same dtype."""
    config = settings(dtype="bfloat16")
    policy = _policy(size, config, device)
    batch = sampled(batch_of(size.episodes, size.model.vocab_size), policy, config, device)
    flops = step_flops(policy.causal_lm, batch)
    trainer = PolicyTrainer(policy, config, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def once() -> None:
        step(trainer, batch)
        synchronise(device)

    seconds = interleaved(
        {"step": timed(once), "matmul": lambda: matmul_seconds(size.matmul, torch.bfloat16, device)}, repetitions=5
    )
    achieved, peak = flops / seconds["step"].median, 2.0 * size.matmul**3 / seconds["matmul"].median
    figures = [
        rate("one step in bf16", len(batch.token_ids_t), seconds["step"], "tokens/s"),
        figure("arithmetic of that step", achieved / 1e12, "TFLOP/s"),
        figure(f"matrix product of {size.matmul} x {size.matmul}", peak / 1e12, "TFLOP/s"),
    ]
    if device.type == "cuda":
        figures.append(figure("peak memory of the device", torch.cuda.max_memory_allocated(device) / 2**30, "GiB"))
    return figures, [ratio("share of the device's arithmetic", achieved / peak, UTILISATION)]


def agreement(size: Size, device: torch.device) -> list[Result]:
    """Packed against one episode a pass, and checkpointed against not: mean |Δ log-probability|, relative |Δ gradient|."""
    batch = batch_of(size.episodes, size.model.vocab_size)
    packed = _scores_and_gradient(size, batch, device, budget=8192)
    single = _scores_and_gradient(size, batch, device, budget=64)
    recomputed = _scores_and_gradient(size, batch, device, budget=8192, activation_checkpointing=True)
    return [
        ratio("packed and single: log-probabilities", _mean_difference(packed[0], single[0]), SAME_LOGPROBS, at_most=True),
        ratio("packed and single: gradient", _relative(packed[1], single[1]), SAME_GRADIENT, at_most=True),
        ratio("checkpointed: log-probabilities", _mean_difference(packed[0], recomputed[0]), SAME_RECOMPUTED, at_most=True),
        ratio("checkpointed: gradient", _relative(packed[1], recomputed[1]), SAME_RECOMPUTED, at_most=True),
    ]


def _scores_and_gradient(
    size: Size, batch: EpisodeBatch, device: torch.device, budget: int, activation_checkpointing: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the chosen tokens, and the gradient of their mean, each parameter's on the CPU."""
    config = settings(dtype="bfloat16", microbatch_tokens=budget, activation_checkpointing=activation_checkpointing)
    policy, chosen = _policy(size, config, device), int(batch.loss_mask_t.sum())
    logprobs_t = torch.zeros(len(batch.token_ids_t), device=device)
    for micro in _micros(batch, budget, device):
        logprobs_n, _ = policy(micro)
        (logprobs_n.sum() / chosen).backward()
        logprobs_t[micro.flat_n] = logprobs_n.detach()
    gradients = [parameter.grad for parameter in policy.parameters()]
    return logprobs_t.cpu(), [_whole(gradient).cpu() for gradient in gradients if gradient is not None]


def _micros(batch: EpisodeBatch, budget: int, device: torch.device) -> list[MicroBatch]:
    plan = plan_micro_batches(batch.lengths, np.arange(len(batch)), ranks=1, budget=budget)
    return [flatten(batch, part, device) for part in plan[0]]


def _policy(size: Size, config: LearnerConfig, device: torch.device) -> Policy:
    return shard(make_policy(random_model(size.model).to(device), config), init_device_mesh(device.type, (1,)), config)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _mean_difference(one_t: Tensor, other_t: Tensor) -> float:
    return float((one_t - other_t).abs()[one_t != 0].mean())


def _relative(one: list[Tensor], other: list[Tensor]) -> float:
    """|g − g'| / |g| over all parameters together."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True))
    return float(np.sqrt(difference / sum(float(a.double().square().sum()) for a in one)))


if __name__ == "__main__":
    sys.exit(main())
