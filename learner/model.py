"""The policy: a Hugging Face causal language model that scores tokens, sharded with FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import nll_loss
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

PREFIX = "causal_lm."  # what the wrapper adds to Hugging Face's parameter names
# 256 MiB of fp32 logits at once; positions beyond it are scored in further chunks and recomputed in backward.
MAX_LOGITS = 2**26


class Policy(nn.Module):
    """Scores the tokens that carry loss; a wrapper, because FSDP gathers the output layer only inside the root's forward.

    The backbone is run without the output layer, so logits exist only at chosen positions.
    """

    def __init__(self, causal_lm: PreTrainedModel, entropy_gradient: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.entropy_gradient = entropy_gradient

    def forward(self, token_ids_bl: Tensor, loss_mask_bl: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy at each of the n chosen tokens, row by row, after temperature as engines report them."""
        hidden_blh = self.causal_lm.base_model(input_ids=token_ids_bl, use_cache=False).last_hidden_state
        # The one shift of the system: token i is predicted by the hidden state of token i − 1.
        chosen_bl = loss_mask_bl[:, 1:]
        hidden_nh, targets_n = hidden_blh[:, :-1][chosen_bl], token_ids_bl[:, 1:][chosen_bl]
        size = max(1, MAX_LOGITS // self.causal_lm.config.vocab_size)
        chunks = list(zip(hidden_nh.split(size), targets_n.split(size), strict=True))
        if len(chunks) == 1:
            return self._score(hidden_nh, targets_n, temperature)
        scored = [checkpoint(self._score, hidden, targets, temperature, use_reentrant=False) for hidden, targets in chunks]
        return torch.cat([logprobs for logprobs, _ in scored]), torch.cat([entropy for _, entropy in scored])

    def _score(self, hidden_nh: Tensor, targets_n: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs_nv = (self.causal_lm.get_output_embeddings()(hidden_nh).float() / temperature).log_softmax(-1)
        chosen_n = -nll_loss(logprobs_nv, targets_n, reduction="none")  # not a view: FSDP hooks its outputs
        weighed_nv = logprobs_nv if self.entropy_gradient else logprobs_nv.detach()
        return chosen_n, -(weighed_nv.exp() * weighed_nv).sum(-1)


def load_policy(model_dir: Path, *, entropy_gradient: bool = False, activation_checkpointing: bool = False) -> Policy:
    """The model of a Hugging Face folder with fp32 master weights; safetensors only, no remote code, no dropout."""
    causal_lm = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.float32,
        attn_implementation="sdpa",
        attention_dropout=0.0,  # the old and the new policy must differ by the update alone
        use_safetensors=True,
        local_files_only=True,
    )
    if activation_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(causal_lm, entropy_gradient).train()  # train mode: without dropout it only switches checkpointing on


def shard(policy: Policy, mesh: DeviceMesh, dtype: torch.dtype) -> Policy:
    """FSDP2 over each decoder layer and over the rest. Gradients are summed over ranks: the loss is already a global mean."""
    precision = MixedPrecisionPolicy() if dtype == torch.float32 else MixedPrecisionPolicy(dtype, torch.float32)
    for layer in cast(nn.ModuleList, policy.causal_lm.base_model.layers):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    return policy


@torch.no_grad()
def score(policy: Policy, token_ids_bl: Tensor, loss_mask_bl: Tensor, temperature: float) -> Tensor:
    """Log-probabilities without gradient."""
    logprobs_n, _ = policy(token_ids_bl, loss_mask_bl, temperature)
    if isinstance(policy, FSDPModule):
        policy.reshard()  # FSDP keeps the root gathered for a backward that never comes: the next pass would see old weights
    return cast(Tensor, logprobs_n)


def full_weights(policy: Policy, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """All weights under Hugging Face's names on the CPU, gathered one by one; `keep` False takes part and returns nothing.

    A tied output layer is the embedding under a second name, and left out here as Hugging Face leaves it out.
    """
    weights = {}
    for name, parameter in policy.named_parameters():
        full = (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
        if keep:
            weights[name.removeprefix(PREFIX)] = full.to("cpu", dtype).contiguous()
    return weights
