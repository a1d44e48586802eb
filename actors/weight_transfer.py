"""Weights from a safetensors file in shared memory into a running vLLM engine: a weight-transfer backend of vLLM's own kind.

vLLM loads `register` from the `vllm.general_plugins` entry point in the process that holds the client *and* in every engine
process, so the package must be installed wherever an engine runs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from actors.process_guard import exit_with_parent
from trajectories.checksum import weights_checksum

BACKEND = "medr3_shm"

# It warns at every update about layers that own no weights (rotary embeddings, a tied output layer).
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


def register() -> None:
    """Entry point of the vLLM plugin; may be called any number of times in a process."""
    exit_with_parent()
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
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        self.received_checksum = weights_checksum(update_info.path)
        if self.received_checksum != update_info.checksum:
            raise ValueError(f"{update_info.path}: checksum {self.received_checksum}, announced was {update_info.checksum}")
        weights = load_file(update_info.path, device="cpu")  # maps the file, copies nothing
        if self.device.type == "cpu":
            self._reload_packed(weights)
            if update_info.mend_tied_output:
                self._repack_tied_output()
        else:
            self.model.load_weights(weights.items())

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


class WeightReport:
    """Mixed into vLLM's workers: lets the engine ask each one what it really read."""

    weight_transfer_engine: SharedMemoryWeights

    def received_weights_checksum(self) -> str:
        return self.weight_transfer_engine.received_checksum
