"""How much of the machine's arithmetic a learner step uses.

A step over T tokens in episodes of lengths L_e, n of them chosen, needs, forward and backward together,

    6·P·T + 6·layers·width·Σ L_e² + 6·n·hidden·vocabulary

operations: P weights in the matrices of the decoder layers, attention over the causal half of L_e², the output layer at chosen
positions. What is computed twice, logits or checkpointed layers, counts once. The peak is what a large matrix product reaches on
the same device.
"""

from __future__ import annotations

import time

import torch
from transformers import PretrainedConfig, PreTrainedModel

from learner.batch import EpisodeBatch


def step_flops(causal_lm: PreTrainedModel, batch: EpisodeBatch) -> float:
    """Operations of one forward and backward pass."""
    config: PretrainedConfig = causal_lm.config
    in_layers = sum(weight.numel() for weight in causal_lm.base_model.layers.parameters() if weight.dim() == 2)
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    squares = float((batch.lengths.astype(float) ** 2).sum())
    layers = 6.0 * in_layers * len(batch.token_ids_t) + 6.0 * config.num_hidden_layers * width * squares
    return layers + 6.0 * float(batch.loss_mask_t.sum()) * config.hidden_size * config.vocab_size


def matmul_seconds(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """One product of two square matrices, which takes 2·size³ operations."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    left @ right  # the first product sets up kernels
    synchronise(device)
    started = time.perf_counter()
    left @ right
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
