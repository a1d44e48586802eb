"""The memory estimate against transformers' own parameter counts, and against what torch really allocates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from learner import logprobs, memory, publishing
from learner.attention import Layout
from learner.config import LearnerConfig, LoraSettings
from learner.lora import is_adapter
from learner.memory import (
    CPU_RUNTIME,
    GIB,
    MemoryPlan,
    estimate,
    estimate_engine,
    estimate_published,
    whole_episodes,
)
from learner.model import make_policy, shard
from learner.model_shape import KNOWN, ModelShape, read_shape
from learner.optimizer import make_adamw
from learner.packing import MicroBatch

# The numbers of the models' public config.json files.
FULL_SIZE = {
    "Qwen2.5-7B": {
        "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3_584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "Llama-3.1-8B-Instruct": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "Qwen2.5-14B": {
        "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 5_120, "intermediate_size": 13_824, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "Qwen3-8B": {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 4_096, "intermediate_size": 12_288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip
SHRUNKEN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    **FULL_SIZE,
    **{f"{name}, shrunken": numbers | SHRUNKEN for name, numbers in FULL_SIZE.items()},
    "tied": FULL_SIZE["Qwen2.5-7B"] | SHRUNKEN | {"tie_word_embeddings": True},
    "biased Llama": FULL_SIZE["Llama-3.1-8B-Instruct"] | SHRUNKEN | {"attention_bias": True, "mlp_bias": True},
    "biased Qwen3": FULL_SIZE["Qwen3-8B"] | SHRUNKEN | {"attention_bias": True},
}


def skeleton(numbers):
    kind, rest = numbers["model_type"], {key: value for key, value in numbers.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **rest))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_as_transformers_counts_them(name):
    shape = ModelShape.from_config(CONFIGS[name])
    model = skeleton(CONFIGS[name])
    assert shape.parameters == model.num_parameters()
    assert shape.backbone_parameters == model.base_model.num_parameters()
    assert shape.layer_parameters == sum(parameter.numel() for parameter in model.base_model.layers[0].parameters())


@pytest.mark.parametrize("targets", [LoraSettings().targets, ("q_proj", "down_proj")])
def test_adapters_are_counted_as_peft_makes_them(targets):
    numbers = CONFIGS["Qwen2.5-7B, shrunken"]
    policy = make_policy(skeleton(numbers), LearnerConfig(lora=LoraSettings(rank=3, targets=targets)))
    adapters = sum(parameter.numel() for name, parameter in policy.named_parameters() if is_adapter(name))
    assert ModelShape.from_config(numbers).adapter_parameters(3, targets) == adapters


def test_a_folder_is_read_and_a_known_name_needs_none(tmp_path):
    skeleton(CONFIGS["tied"]).config.save_pretrained(tmp_path)
    assert read_shape(tmp_path) == ModelShape.from_config(CONFIGS["tied"])
    for name in json.loads(KNOWN.read_text()):
        assert read_shape(tmp_path / name) == ModelShape.from_config(FULL_SIZE[name])
    with pytest.raises(ValueError, match=r"unheard-of has no config\.json, and only these sizes are known by name: Qwen2"):
        read_shape(tmp_path / "unheard-of")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="model_type is 'mamba'; sizes are known for qwen2, qwen3, llama"):
        read_shape(tmp_path)


def test_the_constants_are_those_of_the_rooms_that_use_them():
    assert memory.CHUNK_LOGITS == logprobs.CHUNK_LOGITS
    assert memory.CHUNK_LOGITS_ON_GPU == logprobs.CHUNK_LOGITS_ON_GPU
    assert memory.KEPT_VERSIONS == publishing.KEPT_VERSIONS


MEASURED = {
    "vocab_size": 8_192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
TOKENS = 1_024
CHUNK = 2**21  # four chunks of logits, as a real model has many


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def micro_batch():
    positions = torch.arange(TOKENS) % (TOKENS // 4)
    chosen = torch.nonzero(positions >= 16)[:, 0]
    return MicroBatch(
        torch.randint(0, MEASURED["vocab_size"], (TOKENS,)), positions, Layout.of(np.full(4, TOKENS // 4)), chosen, chosen,
        torch.zeros_like(chosen), torch.ones(len(chosen)), 1.0,
    )  # fmt: skip


def peak_growth(work):
    """The most bytes that torch held at once, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = sorted((event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"),
                    key=lambda event: event.start_ns())  # fmt: skip
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (True, {}),
        (False, {}),
        (False, {"activation_checkpointing": True}),
        (True, {"lora": LoraSettings()}),
        (False, {"dtype": "bfloat16"}),
    ],
    ids=["tied", "untied", "checkpointing", "lora", "bfloat16"],
)
def test_a_training_step_takes_the_memory_that_was_estimated(settings, tied, one_rank, monkeypatch):
    for room in (logprobs, memory):
        monkeypatch.setattr(room, "CHUNK_LOGITS", CHUNK)
    config = LearnerConfig(microbatch_tokens=TOKENS, **settings)
    model_config = Qwen2Config(**MEASURED, tie_word_embeddings=tied)
    policy = shard(make_policy(Qwen2ForCausalLM(model_config), config), one_rank, config)
    optimizer, micro = make_adamw(policy, config), micro_batch()

    def learn():
        policy(micro)[0].sum().backward()

    learn()  # afterwards there are gradients, as before every micro-batch but the first
    held = [*policy.parameters()]
    held += [parameter.grad for parameter in held if parameter.grad is not None]
    held += [moment for state in optimizer.state.values() for name, moment in state.items() if name != "step"]
    measured = sum(tensor.to_local().nbytes for tensor in held) + peak_growth(learn)
    plan = estimate(ModelShape.from_config({"model_type": "qwen2"} | model_config.to_dict()), config, longest=0)[0]
    assert 0.95 <= (plan.total - CPU_RUNTIME) / measured <= 1.2


def gpu_plan(name="Qwen2.5-14B", **settings):
    config = LearnerConfig(gpus_per_worker=1, dtype="bfloat16", **settings)
    return estimate(ModelShape.from_config(FULL_SIZE[name]), config, longest=16_384)


def test_every_way_to_need_less_memory_is_seen():
    plain, copy = gpu_plan(workers=4, microbatch_tokens=32_768)
    checkpointed, _ = gpu_plan(workers=4, microbatch_tokens=32_768, activation_checkpointing=True)
    short, _ = gpu_plan(workers=4, microbatch_tokens=16_384, activation_checkpointing=True)
    spread, spread_copy = gpu_plan(workers=8, microbatch_tokens=16_384, activation_checkpointing=True)
    adapted, small_copy = gpu_plan(workers=8, microbatch_tokens=16_384, activation_checkpointing=True, lora=LoraSettings())
    offloaded, host = gpu_plan(workers=8, microbatch_tokens=16_384, activation_checkpointing=True, cpu_offload=True)
    totals = [plan.total for plan in (plain, checkpointed, short, spread, adapted, offloaded)]
    assert totals == sorted(totals, reverse=True)
    assert offloaded.total + host.total == spread.total + spread_copy.total
    assert copy.total == 2 * spread_copy.total > 100 * small_copy.total, "a checkpoint holds what is trained"
    assert plain.largest == "activations"
    assert spread.largest == "AdamW's moments"


def test_reference_and_critic_are_counted():
    shape = ModelShape.from_config(FULL_SIZE["Qwen2.5-7B"])
    bare, _ = gpu_plan("Qwen2.5-7B", workers=2)
    ppo, _ = gpu_plan("Qwen2.5-7B", workers=2, algorithm="ppo", kl_coefficient=0.01)
    assert ppo.total - bare.total == 4 * shape.parameters // 2 + 16 * shape.backbone_parameters // 2


def test_a_longer_episode_than_the_budget_counts():
    shape, config = ModelShape.from_config(FULL_SIZE["Qwen2.5-7B"]), LearnerConfig(microbatch_tokens=1_024)
    assert estimate(shape, config, 4_096) == estimate(shape, config.model_copy(update={"microbatch_tokens": 4_096}), 0)


def test_engine_and_published_weights():
    shape = ModelShape.from_config(FULL_SIZE["Qwen2.5-7B"])
    settings = {"dtype": "bfloat16", "kv_cache_mib": 8_192}
    one, two = (estimate_engine(shape, on_gpu=True, tensor_parallel=ranks, max_num_seqs=64, **settings) for ranks in (1, 2))
    assert one.parts["weights"] == 2 * shape.parameters == 2 * two.parts["weights"]
    assert estimate_published(shape, "bfloat16").total == 3 * 2 * shape.parameters
    # 2 × 28 layers × 4 heads × 128 × 2 bytes = 56 KiB a token: 8 GiB hold 9 episodes of 16,384.
    assert whole_episodes(shape, tensor_parallel=1, length=16_384, **settings) == 9
    assert whole_episodes(shape, tensor_parallel=4, length=16_384, **settings) == 36


def test_the_table_adds_up():
    plan = MemoryPlan("one GPU", {"weights": 3 * GIB, "nothing": 0, "gradients": GIB})
    assert [line.split() for line in plan.table()] == [
        ["one", "GPU", "4.00", "GiB"], ["weights", "3.00", "GiB"], ["gradients", "1.00", "GiB"],
    ]  # fmt: skip
    assert not plan.fits(4)
    assert plan.fits(4.5)
