"""AdamW, and the one way to apply a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from learner.config import LearnerConfig


def make_adamw(module: nn.Module, config: LearnerConfig) -> AdamW:
    """AdamW over what is trained, with zero moments made here and not at its first step, so that a checkpoint always has them."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = AdamW(parameters, lr=0.0, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
    for parameter in parameters:
        moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
    return optimizer


def apply_gradient(optimizer: AdamW, learning_rate: float, clip: float) -> float | None:
    """One step; returns the gradient's norm, or None where it was not finite and the step was left out. All ranks decide alike."""
    parameters: list[Tensor] = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["lr"] = learning_rate
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    value = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    finite = torch.isfinite(torch.tensor(value)).item()
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value if finite else None
