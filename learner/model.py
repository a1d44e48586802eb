"""The policy: a Hugging Face causal language model that scores tokens; the critic beside it; and how both are sharded."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from learner.attention import NAME as PACKED_ATTENTION
from learner.config import LearnerConfig
from learner.logprobs import chosen_logprobs
from learner.lora import add_adapters
from learner.packing import MicroBatch

PREFIX = "causal_lm."  # what the wrapper adds to Hugging Face's parameter names
# Settings by which some architectures change logits after the output layer, which chunked scoring does not know.
LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
Scorer = TypeVar("Scorer", "Policy", "Critic")


class Policy(nn.Module):
    """Scores the tokens that carry loss; a wrapper, because FSDP gathers the output layer only inside the root's forward.

    The backbone is run without the output layer, so logits exist only at chosen positions.
    """

    def __init__(self, causal_lm: PreTrainedModel, entropy_gradient: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.entropy_gradient = entropy_gradient

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.causal_lm.base_model.layers)

    def forward(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy at each of the n chosen tokens, after temperature, as engines report them."""
        hidden_nh = _before_chosen(self.causal_lm.base_model, micro)
        output_vh = self.causal_lm.get_output_embeddings().weight
        targets_n = micro.token_ids_t[micro.chosen_n]
        return chosen_logprobs(hidden_nh, output_vh, targets_n, micro.temperature_n, self.entropy_gradient)


class Critic(nn.Module):
    """The value of the state before each chosen token: the backbone of the same model with one output."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = causal_lm.base_model
        self.value_head = nn.Linear(causal_lm.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)  # the first values are 0: advantages start as the bare returns
        nn.init.zeros_(self.value_head.bias)

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.backbone.layers)

    def forward(self, micro: MicroBatch) -> Tensor:
        """One value for each of the n chosen tokens."""
        values_n1 = self.value_head(_before_chosen(self.backbone, micro)).float()
        return cast(Tensor, values_n1[:, 0].clone())  # not a view: FSDP hooks what a module returns


def _before_chosen(backbone: nn.Module, micro: MicroBatch) -> Tensor:
    """The hidden state that predicts each chosen token: the one shift of the system, token i by the state of token i − 1."""
    hidden_1th = backbone(
        input_ids=micro.token_ids_t[None], position_ids=micro.position_ids_t[None], use_cache=False, layout=micro.layout
    ).last_hidden_state
    return cast(Tensor, hidden_1th[0, micro.chosen_n - 1])


def read_config(model_dir: Path) -> PretrainedConfig:
    """The architecture of a folder; what this learner would compute wrongly is refused by name."""
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    for name in LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{model_dir}: its config sets {name}, which the learner does not support: take another model")
    config.attention_dropout = 0.0  # the old and the new policy must differ by the update alone
    return config


def load_causal_lm(model_dir: Path) -> PreTrainedModel:
    """The model of a Hugging Face folder with fp32 master weights; safetensors only, no remote code."""
    return AutoModelForCausalLM.from_pretrained(
        model_dir,
        config=read_config(model_dir),
        dtype=torch.float32,
        attn_implementation=PACKED_ATTENTION,
        use_safetensors=True,
        local_files_only=True,
    )


def make_policy(causal_lm: PreTrainedModel, config: LearnerConfig) -> Policy:
    """The policy that is trained: with adapters if they are configured, in train mode, which here only switches checkpointing."""
    causal_lm.set_attn_implementation(PACKED_ATTENTION)
    if config.lora is not None:
        add_adapters(causal_lm, config.lora)
    if config.activation_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    return _compiled(Policy(causal_lm, entropy_gradient=config.entropy_coefficient != 0), config).train()


def make_critic(causal_lm: PreTrainedModel, config: LearnerConfig) -> Critic:
    """The critic starts as the policy's model does."""
    causal_lm.set_attn_implementation(PACKED_ATTENTION)
    if config.activation_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    return _compiled(Critic(causal_lm), config).train()


def _compiled(module: Scorer, config: LearnerConfig) -> Scorer:
    """Layer by layer, as they are sharded; rows differ in length, so once for all lengths."""
    if config.compile:
        for layer in module.layers:
            layer.compile(dynamic=True)
    return module


def shard(module: Scorer, mesh: DeviceMesh, config: LearnerConfig) -> Scorer:
    """FSDP2 over each decoder layer and over the rest. Gradients are summed over ranks: the loss is already a global mean."""
    # Inputs are not cast: a micro-batch carries temperatures, which 16 bits would round.
    precision = MixedPrecisionPolicy(cast_forward_inputs=False)
    if config.dtype == "bfloat16":
        precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    for part in (*module.layers, module):
        fully_shard(part, mesh=mesh, mp_policy=precision, offload_policy=offload)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    return module


@torch.no_grad()
def score(module: Policy | Critic, micro: MicroBatch) -> Tensor:
    """Log-probabilities, or values, without gradient."""
    scored = module(micro)
    if isinstance(module, FSDPModule):
        module.reshard()  # FSDP keeps the root gathered for a backward that never comes: the next pass would see old weights
    return cast(Tensor, scored if isinstance(module, Critic) else scored[0])
