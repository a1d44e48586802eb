"""A model of any size into sharded parameters: built without memory, sharded, then every rank reads its own rows.

::

    config ▶ skeleton on the meta device ▶ build: adapters, critic's head, fully_shard ▶ allocate own rows ▶ read own rows
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.attention import NAME as PACKED_ATTENTION
from learner.lora import initialise_adapters, published_name
from learner.model import PREFIX, Critic, Policy, read_config
from learner.placement import first_row, local_rows
from learner.tensor_files import TensorFiles

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DERIVED = "rotary_emb.inv_freq"  # stored by some older folders, but computed from the config
Scorer = TypeVar("Scorer", Policy, Critic)


class ModelRefused(Exception):
    """A model folder that the learner cannot train; the text says what is wrong, where, and what to do."""


def load_sharded(
    model_dir: Path, build: Callable[[PreTrainedModel], Scorer], device: torch.device, *, offload: bool = False
) -> Scorer:
    """`build` makes what is trained out of a skeleton without data, and shards it; with `offload` parameters stay on the CPU."""
    open_model(model_dir)  # a folder that cannot be read is refused before anything is built
    module = build(skeleton(model_dir))
    materialise(module, model_dir, torch.device("cpu") if offload else device)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    return module


def skeleton(model_dir: Path) -> PreTrainedModel:
    """The architecture of a folder on the meta device: shapes and names, no data."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            read_config(model_dir), dtype=torch.float32, attn_implementation=PACKED_ATTENTION
        )


def open_model(model_dir: Path) -> TensorFiles:
    """The weights of a Hugging Face folder, in one file or in many with an index."""
    if (index := model_dir / INDEX).is_file():
        return TensorFiles(model_dir / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values())))
    if (model_dir / WEIGHTS).is_file():
        return TensorFiles([model_dir / WEIGHTS])
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_dir.glob(pattern))
    if pickled:
        raise ModelRefused(
            f"{model_dir} holds pickled weights only ({pickled[0]}), which can run any code when they are opened: if you trust"
            " them, convert them once with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise ModelRefused(f"{model_dir} holds neither {WEIGHTS} nor {INDEX}: name the folder of a Hugging Face model")


def materialise(module: Policy | Critic, model_dir: Path, device: torch.device) -> None:
    """Gives memory to parameters that may be sharded and on the meta device, and fills this rank's rows from the folder.

    What no folder holds is made new: adapters as `initialise_adapters` says, a critic's head as zeros.
    """
    files = open_model(model_dir)
    stored = _stored_names(module, files, model_dir)
    _allocate(module, device)
    _rebuild_buffers(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            rows = local_rows(parameter)
            if name not in stored:
                rows.zero_()
            elif len(rows):
                rows.copy_(files.rows(stored[name], first_row(parameter), len(rows)))
    initialise_adapters(module)


def _stored_names(module: Policy | Critic, files: TensorFiles, model_dir: Path) -> dict[str, str]:
    """Where each parameter lies in the files, if it is not new. A folder that does not fit is refused by the tensor's name."""
    known: dict[int, list[str]] = {}  # a tied parameter has several names, and folders keep one of them or all
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if (in_folder := _folder_name(module, name)) is not None:
            known.setdefault(id(parameter), []).append(in_folder)
    stored: dict[str, str] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) not in known:
            continue
        present = [in_folder for in_folder in known[id(parameter)] if in_folder in files.names]
        if not present:
            wanted = known[id(parameter)][0]
            raise ModelRefused(f"{model_dir} lacks {wanted}, which its config.json asks for: copy the folder again")
        stored[name] = present[0]
        found, shape = files.shape(stored[name]), tuple(parameter.shape)
        if found != shape and parameter is _embeddings(module):
            raise ModelRefused(
                f"{model_dir}: {stored[name]} has {found[0]} rows, but vocab_size in config.json is {shape[0]}:"
                " set vocab_size to the rows that there are"
            )
        if found != shape:
            raise ModelRefused(f"{model_dir}: {stored[name]} has shape {found}, but its config.json asks for {shape}")
    strange = sorted(
        name for name in files.names.difference(*known.values()) if not name.endswith(DERIVED) and _is_ours(module, name)
    )
    if strange:
        raise ModelRefused(f"{model_dir} holds {strange[0]}, which its config.json has no place for: is it of another model?")
    return stored


def _folder_name(module: Policy | Critic, name: str) -> str | None:
    """The name by which a Hugging Face folder knows a parameter; None for adapters and a critic's head."""
    if isinstance(module, Policy):
        return published_name(name.removeprefix(PREFIX))
    return f"{_backbone(module).base_model_prefix}.{rest}" if (rest := name.removeprefix("backbone.")) != name else None


def _is_ours(module: Policy | Critic, name: str) -> bool:
    """A critic has no output layer, so what a folder holds beside the backbone is none of its business."""
    return isinstance(module, Policy) or name.startswith(_backbone(module).base_model_prefix + ".")


def _backbone(module: Policy | Critic) -> PreTrainedModel:
    return module.causal_lm.base_model if isinstance(module, Policy) else module.backbone


def _embeddings(module: Policy | Critic) -> nn.Parameter:
    return _backbone(module).get_input_embeddings().weight


def _allocate(module: nn.Module, device: torch.device) -> None:
    """`to_empty` makes two parameters of a tied one: they are tied again."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((part, name))
    trained = {id(parameter): parameter.requires_grad for parameter in module.parameters()}
    module.to_empty(device=device)
    for key, ((first, name), *others) in owners.items():
        parameter = getattr(first, name).requires_grad_(trained[key])
        for other, other_name in others:
            setattr(other, other_name, parameter)


def _rebuild_buffers(module: Policy | Critic) -> None:
    """Rotary frequencies and the like are in no file: the model's own initialisation computes them. NaN shows what it left out."""
    backbone = _backbone(module)
    for part in backbone.modules():
        if any(True for _ in part.buffers(recurse=False)) and not any(True for _ in part.parameters(recurse=False)):
            for buffer in part.buffers(recurse=False):
                buffer.fill_(float("nan") if buffer.is_floating_point() else -1)
            backbone._init_weights(part)
    for name, buffer in module.named_buffers():
        if buffer.isnan().any():
            raise ModelRefused(f"the learner cannot rebuild {name} of {type(backbone).__name__}: train another architecture")
