"""Training state on disk: every rank writes its shards, any number of ranks reads them. All safetensors, nothing pickled."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from learner.trainer import PolicyTrainer

TRAINING_STATE = "training_state"  # subfolder of a checkpoint; its neighbour is the exported model
RANDOM_STATE = "random_state"


def save_training_state(trainer: PolicyTrainer, checkpoint: Path) -> None:
    """Writes weights, AdamW moments and the random state; every rank calls it, and returns when all have written."""
    folder = checkpoint / TRAINING_STATE
    folder.mkdir(parents=True, exist_ok=True)
    save(_state(trainer), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    if dist.is_initialized():
        dist.barrier()


def load_training_state(trainer: PolicyTrainer, checkpoint: Path) -> None:
    """Reads a checkpoint into the trainer in place, resharded to the ranks there are now."""
    folder = checkpoint / TRAINING_STATE
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"no training state in {folder}: resume from a folder that `checkpoint` has written")
    state = _state(trainer)
    load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
    for name, parameter in trainer.policy.named_parameters():
        trainer.optimizer.state[parameter]["step"].copy_(state[f"optimizer.{name}.step"][0])
    torch.set_rng_state(state[RANDOM_STATE])


def _state(trainer: PolicyTrainer) -> dict[str, Tensor]:
    """The live tensors under flat names. Steps are copies with one dimension: a shard needs one."""
    state: dict[str, Tensor] = {RANDOM_STATE: torch.get_rng_state()}
    for name, parameter in trainer.policy.named_parameters():
        moments = trainer.optimizer.state[parameter]
        state[f"model.{name}"] = parameter.detach()
        state[f"optimizer.{name}.step"] = moments["step"].reshape(1).clone()
        state[f"optimizer.{name}.exp_avg"] = moments["exp_avg"]
        state[f"optimizer.{name}.exp_avg_sq"] = moments["exp_avg_sq"]
    return state
