"""Weights from a safetensors file in shared memory into a running vLLM engine: a weight-transfer backend of vLLM's own kind.

vLLM loads `register` from the `vllm.general_plugins` entry point in the process that holds the client *and* in every engine
process, so the package must be installed wherever an engine runs.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from actors.process_guard import exit_with_parent, leave_no_semaphore
from trajectories.checksum import MappedWeights

BACKEND = "medr3_shm"

# What the learner publishes, in safetensors' words.
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}

# It warns at every update about layers that own no weights (rotary embeddings, a tied output layer).
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


def register() -> None:
    """Entry point of the vLLM plugin; may be called any number of times in a process."""
    exit_with_parent()
    leave_no_semaphore()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, SharedMemoryWeights.__name__)


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """A file needs no rendezvous."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """The file to load, and the checksum that it must have. Without the mend, the canary finds the fault described below."""

    path: str
    checksum: str
    mend_tied_output: bool = True


class SharedMemoryWeights(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Loads one whole file per update. Nothing of the model is touched before the file's checksum agrees."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    received_checksum = ""
    seconds: dict[str, float]

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing yet: taking the model apart waits until the file is known to be whole."""

    def finish_weight_update(self) -> None:
        """Nothing left: `receive_weights` leaves a complete model."""

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """The end of the `with` block proves that nothing of the model is left in the file: a view would keep it open."""
        began = time.perf_counter()
        with MappedWeights(update_info.path) as file:
            self.received_checksum = file.checksum(file.digests())
            if self.received_checksum != update_info.checksum:
                raise ValueError(f"{update_info.path}: checksum {self.received_checksum}, announced was {update_info.checksum}")
            checked = time.perf_counter()
            self._load(_views(file), update_info.mend_tied_output)
        self.seconds = {"checksum": checked - began, "load": time.perf_counter() - checked}

    def _load(self, weights: dict[str, torch.Tensor], mend_tied_output: bool) -> None:
        if self.device.type == "cpu":
            self._reload_packed(weights)
            if mend_tied_output:
                self._repack_tied_output()
        else:
            self.model.load_weights(weights.items())
            torch.accelerator.synchronize()

    def _reload_packed(self, weights: dict[str, torch.Tensor]) -> None:
        """vLLM repacks weights for the CPU, so they are loaded layer by layer into fresh tensors and packed again."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(weights.items())
        finally:  # also after a tensor of a wrong shape: the layers must be whole again for the next, good update
            finalize_layerwise_reload(self.model, self.model_config)

    def _repack_tied_output(self) -> None:
        """A tied output layer loads nothing of its own, so the reload above leaves its packed copy at the old weights."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        if not getattr(self.model_config.hf_text_config, "tie_word_embeddings", False):
            return
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def _views(file: MappedWeights) -> dict[str, torch.Tensor]:
    """The tensors where they stand in the file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # and nobody writes to it
        return {
            tensor.name: torch.frombuffer(
                file.bytes, dtype=_DTYPES[tensor.dtype], count=prod(tensor.shape), offset=tensor.begin
            ).view(tensor.shape)
            for tensor in sorted(file.tensors, key=lambda tensor: tensor.begin)  # the writer's order, layer after layer
        }


class WeightReport:
    """Mixed into vLLM's workers: lets the engine ask each one what it really read, and how long each stage took."""

    weight_transfer_engine: SharedMemoryWeights

    def received_weights(self) -> tuple[str, dict[str, float]]:
        return self.weight_transfer_engine.received_checksum, self.weight_transfer_engine.seconds
