"""The policy as an ordinary Hugging Face folder, which `transformers` and vLLM open."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from learner.model import Policy, full_weights

MODEL = "model"  # subfolder of a checkpoint
WEIGHTS = "model.safetensors"


def export_model(policy: Policy, model_dir: Path, folder: Path, dtype: torch.dtype, rank: int) -> None:
    """Weights of the policy beside everything else that the folder of the original model holds: config, tokenizer, template.

    Every rank calls it; rank 0 writes.
    """
    weights = full_weights(policy, dtype, keep=rank == 0)
    if rank != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in model_dir.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")):
            shutil.copy2(file, folder / file.name)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
