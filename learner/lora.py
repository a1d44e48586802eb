"""Low-rank adapters: trained instead of the weights they sit on, and never published but as part of them.

An engine gets whole merged weights, whichever way they were trained: it can neither miss an adapter nor serve the base model.
"""

from __future__ import annotations

import zlib
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.config import LoraSettings
from learner.placement import first_row, local_rows, whole_tensor

ADAPTER = "default"
BASE, FIRST, SECOND = ".base_layer", f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


def add_adapters(causal_lm: PreTrainedModel, settings: LoraSettings) -> None:
    """W becomes W + (alpha / rank)·B·A in the named linear layers; all but A and B is frozen.

    A layer's B starts at zero, so that the adapted model is the model.
    """
    # The output layer is read as a bare weight (learner/model.py), so an adapter on it would never be trained.
    backbone: nn.Module = causal_lm.base_model
    present = {name.rpartition(".")[2] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(settings.targets) - present):
        raise ValueError(f"learner.lora.targets names {', '.join(unknown)}; this model has {', '.join(sorted(present))}")
    inject_adapter_in_model(
        LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets), lora_dropout=0.0),
        causal_lm,
    )
    for name, parameter in causal_lm.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def is_adapter(name: str) -> bool:
    return name.endswith((FIRST, SECOND))


def published_name(name: str) -> str | None:
    """Hugging Face's name of a weight; None for an adapter, which is published within the weight that it adapts."""
    return None if is_adapter(name) else name.replace(BASE, "")


@torch.no_grad()
def initialise_adapters(module: nn.Module) -> None:
    """Kaiming's uniform A and zero B, drawn by name: every rank count starts with the same adapters."""
    for name, parameter in module.named_parameters():
        if name.endswith(SECOND):
            parameter.zero_()
        elif name.endswith(FIRST):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            bound = parameter.shape[1] ** -0.5
            whole = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            rows, start = local_rows(parameter), first_row(parameter)
            rows.copy_(whole[start : start + len(rows)])


def merged_rows(policy: nn.Module, name: str, rows: Tensor) -> Tensor:
    """This rank's rows of a weight with what its adapter adds; B is sharded as W is, A is gathered. Every rank must call it."""
    if not name.endswith(f"{BASE}.weight"):
        return rows
    layer = cast(LoraLayer, policy.get_submodule(name.removesuffix(f"{BASE}.weight")))
    first, second = (cast(nn.Linear, part[ADAPTER]).weight for part in (layer.lora_A, layer.lora_B))
    return torch.addmm(rows, local_rows(second), whole_tensor(first), alpha=layer.scaling[ADAPTER])
