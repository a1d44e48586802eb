"""The policy as an ordinary Hugging Face folder, which `transformers` and vLLM open: from memory, or from a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from learner.checkpoint import WEIGHTS as TRAINED
from learner.checkpoint import stored_name
from learner.checkpoint_folder import CheckpointRefused, rank_files, read_state
from learner.loading import INDEX, WEIGHTS, open_model, skeleton
from learner.lora import FIRST, SECOND
from learner.model import PREFIX, Policy
from learner.shards import weight_shards
from learner.tensor_files import Entry, TensorFiles, write_tensors

FILE_BYTES = 4 * 10**9  # what Hugging Face's hub and most file systems take without complaint
# Everything that reads and writes text; training arguments, optimisers and pickles of the base model stay behind.
NEIGHBOURS = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "generation_config.json", "LICENSE*",
)  # fmt: skip


def export_model(policy: Policy, model_dir: Path, folder: Path, dtype: torch.dtype) -> None:
    """A policy that one process holds whole."""
    shards = list(weight_shards(policy))
    _write(model_dir, folder, dtype, [Entry(shard.name, dtype, shard.shape, 0, shard.rows.detach) for shard in shards])


def export_checkpoint(
    checkpoint: Path, model_dir: Path, folder: Path, dtype: torch.dtype, file_bytes: int = FILE_BYTES
) -> None:
    """What a checkpoint holds, adapters merged into the weights of `model_dir`; only one tensor is in memory at a time."""
    state, model = read_state(checkpoint), skeleton(model_dir)
    if state["architecture"] != type(model).__name__:
        raise CheckpointRefused(f"{checkpoint} is a {state['architecture']}, but {model_dir} a {type(model).__name__}")
    files = TensorFiles(rank_files(checkpoint, state["ranks"]))
    source = _Source(files, open_model(model_dir), state["lora"])
    entries = [
        Entry(name, dtype, tuple(parameter.shape), 0, partial(source.weight, name))
        for name, parameter in model.named_parameters()
    ]
    _write(model_dir, folder, dtype, entries, file_bytes)


class _Source:
    """A weight as training left it: trained itself, adapted, or the base model's own."""

    def __init__(self, trained: TensorFiles, base: TensorFiles, lora: dict[str, float] | None) -> None:
        self._trained, self._base = trained, base
        self._scale = lora["alpha"] / lora["rank"] if lora else 0.0

    def weight(self, name: str) -> Tensor:
        own, layer = self._stored(name), name.removesuffix(".weight")
        first, second = self._stored(layer + FIRST), self._stored(layer + SECOND)
        if own in self._trained.names:
            return self._trained.whole(own)
        weight = self._base.whole(name).float()
        if first not in self._trained.names:
            return weight
        return torch.addmm(weight, self._trained.whole(second), self._trained.whole(first), alpha=self._scale)

    def _stored(self, name: str) -> str:
        return stored_name("policy", TRAINED, PREFIX + name)


def _write(model_dir: Path, folder: Path, dtype: torch.dtype, entries: list[Entry], file_bytes: int = FILE_BYTES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in NEIGHBOURS:
        for file in model_dir.glob(pattern):
            shutil.copy2(file, folder / file.name)
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the older name of the same
    config["dtype"] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", config)
    if not (folder / "generation_config.json").exists():
        ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(name) is not None}
        _write_json(folder / "generation_config.json", ends)
    parts = _split(entries, file_bytes)
    if len(parts) == 1:
        write_tensors(folder / WEIGHTS, entries)
        return
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        write_tensors(folder / name, part)
    where = {entry.name: name for name, part in zip(names, parts, strict=True) for entry in part}
    _write_json(folder / INDEX, {"metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": where})


def _split(entries: Sequence[Entry], file_bytes: int) -> list[list[Entry]]:
    """In order, as many to a file as it may hold; a tensor that is larger has a file of its own."""
    parts: list[list[Entry]] = [[]]
    for entry in entries:
        if parts[-1] and sum(other.nbytes for other in parts[-1]) + entry.nbytes > file_bytes:
            parts.append([])
        parts[-1].append(entry)
    return parts


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
