"""Scoring of flat rows: attention that stays within episodes, log-probabilities in chunks, architectures, adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from learner import logprobs
from learner.attention import MAX_PADDING, Layout, packed_attention
from learner.batch import read_batch
from learner.config import LearnerConfig, LoraSettings
from learner.logprobs import chosen_logprobs
from learner.lora import initialise_adapters, is_adapter
from learner.model import load_causal_lm, make_policy, shard
from learner.packing import Bin, flatten
from learner.shards import weight_shards
from tests.learner_episodes import VOCABULARY, sample_group, tiny_model

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
ARCHITECTURES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen2-untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})),
}


@pytest.fixture(scope="module")
def batch():
    return read_batch([sample_group(tiny_model(), group) for group in range(3)])


@pytest.fixture(scope="module")
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def whole(batch):
    return flatten(batch, Bin(np.arange(len(batch))))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 99))
def test_packed_attention_is_the_attention_of_each_episode_alone(lengths, seed):
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, 4, sum(lengths), 8),
        torch.randn(1, 2, sum(lengths), 8),
        torch.randn(1, 2, sum(lengths), 8),
    )
    packed, _ = packed_attention(None, query, key, value, None, scaling=0.3, layout=Layout.of(np.array(lengths)))
    start = 0
    for length in lengths:
        part = [tensor[:, :, start : start + length] for tensor in (query, key, value)]
        expected = scaled_dot_product_attention(*part, is_causal=True, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(packed[:, start : start + length], expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
        start += length


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_rectangles_cover_the_row_and_hold_little_padding(lengths):
    layout = Layout.of(np.array(lengths))
    assert [r.start for r in layout.rectangles] == [0, *(r.end for r in layout.rectangles)][:-1]
    assert layout.rectangles[-1].end == sum(lengths)
    for rectangle in layout.rectangles:
        assert rectangle.end - rectangle.start >= (1 - MAX_PADDING) * rectangle.rows * rectangle.columns


def test_attention_without_a_layout_and_beyond_a_sliding_window_is_refused():
    part = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="needs the layout"):
        packed_attention(None, part, part, part, None)
    with pytest.raises(ValueError, match="episode of 4 tokens passes the model's sliding window of 3"):
        packed_attention(None, part, part, part, None, layout=Layout.of(np.array([4])), sliding_window=3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_and_scores_as_transformers_does(name, batch, tmp_path):
    torch.manual_seed(0)
    ARCHITECTURES[name]().save_pretrained(tmp_path)
    policy = make_policy(load_causal_lm(tmp_path), LearnerConfig())
    micro = whole(batch)
    found_n, entropy_n = policy(micro)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    for e in range(len(batch)):
        ids = torch.tensor(batch.token_ids_t[batch.offsets[e] : batch.offsets[e + 1]].astype(np.int64))
        scores = reference(ids[None]).logits[0].log_softmax(-1)
        chosen = np.flatnonzero(batch.loss_mask_t[batch.offsets[e] : batch.offsets[e + 1]])
        own = micro.episode_n == e
        torch.testing.assert_close(found_n[own], scores[chosen - 1, ids[chosen]], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(entropy_n[own], -(scores.exp() * scores).sum(-1)[chosen - 1], atol=2e-5, rtol=1e-5)
    published = {shard.name for shard in weight_shards(policy)}
    assert published == {name for name, _ in reference.named_parameters()}


def test_a_model_that_changes_its_logits_is_refused(tmp_path):
    model = tiny_model()
    model.config.final_logit_softcapping = 30.0
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sets final_logit_softcapping"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("chunk", [VOCABULARY * 3, 2**24])
def test_chunked_log_probabilities_have_the_value_and_gradient_of_the_plain_formula(monkeypatch, entropy_gradient, chunk):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", chunk)
    torch.manual_seed(1)
    hidden, output = torch.randn(20, 16, requires_grad=True), torch.randn(VOCABULARY, 16, requires_grad=True)
    targets, temperature = torch.randint(VOCABULARY, (20,)), torch.rand(20) + 0.4
    weights = torch.randn(2, 20)

    def gradients(logprob_n, entropy_n):
        loss = (weights[0] * logprob_n).sum() + ((weights[1] * entropy_n).sum() if entropy_gradient else 0)
        return torch.autograd.grad(loss, (hidden, output))

    found = chosen_logprobs(hidden, output, targets, temperature, entropy_gradient)
    scores = (hidden @ output.T / temperature[:, None]).log_softmax(-1)
    plain = scores.gather(-1, targets[:, None])[:, 0], -(scores.exp() * scores).sum(-1)
    for one, other in zip((*found, *gradients(*found)), (*plain, *gradients(*plain)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_temperature_is_each_episodes_own(batch):
    mixed = read_batch([sample_group(tiny_model(), 20, temperature=0.6), sample_group(tiny_model(), 21, temperature=1.0)])
    micro = whole(mixed)
    found, _ = make_policy(tiny_model(), LearnerConfig())(micro)
    np.testing.assert_allclose(found.detach().numpy(), mixed.behaviour_t[micro.flat_n], atol=2e-5)


def test_sixteen_bits_compute_layers_and_leave_temperatures_alone(batch, one_rank):
    config = LearnerConfig(dtype="bfloat16")
    mixed = read_batch([sample_group(tiny_model(), 22, temperature=0.7)])
    policy, seen = shard(make_policy(tiny_model(), config), one_rank, config), {}
    policy.causal_lm.model.layers[0].register_forward_hook(lambda module, inputs, output: seen.update(layer=output.dtype))

    def look(module, inputs):
        seen["temperature"] = inputs[0].temperature_n

    policy.register_forward_pre_hook(look)
    found, _ = policy(whole(mixed))
    assert seen["layer"] == torch.bfloat16
    assert set(seen["temperature"].tolist()) == {np.float32(0.7)}
    exact, _ = make_policy(tiny_model(), LearnerConfig())(whole(mixed))
    assert (found - exact).abs().mean() < 0.1


def test_activation_checkpointing_changes_no_gradient(batch):
    def gradients(**settings):
        policy = make_policy(tiny_model(), LearnerConfig(**settings))
        policy(whole(batch))[0].sum().backward()
        return [parameter.grad for parameter in policy.parameters()]

    plain, recomputed = gradients(), gradients(activation_checkpointing=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))


def test_fresh_adapters_change_nothing_and_trained_ones_are_published_merged(batch, tmp_path):
    base = make_policy(tiny_model(), LearnerConfig())
    policy = make_policy(tiny_model(), LearnerConfig(lora=LoraSettings(rank=4, alpha=8)))
    initialise_adapters(policy)
    micro = whole(batch)
    torch.testing.assert_close(policy(micro)[0], base(micro)[0])
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(is_adapter(name) for name in trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1 * torch.randn_like(parameter)
    merged = tiny_model()
    shards = list(weight_shards(policy))
    assert [shard.name for shard in shards] == [shard.name for shard in weight_shards(base)]
    merged.load_state_dict({shard.name: shard.rows for shard in shards}, strict=False)
    torch.testing.assert_close(make_policy(merged, LearnerConfig())(micro)[0], policy(micro)[0], atol=1e-5, rtol=1e-5)
    assert (policy(micro)[0] - base(micro)[0]).abs().max() > 1e-2


def test_adapters_are_the_same_whoever_draws_them():
    one, other = (make_policy(tiny_model(), LearnerConfig(lora=LoraSettings())) for _ in range(2))
    for seed, policy in enumerate((one, other)):
        torch.manual_seed(seed)
        initialise_adapters(policy)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_unknown_adapter_targets_are_refused():
    with pytest.raises(ValueError, match="targets names query; this model has down_proj"):
        make_policy(tiny_model(), LearnerConfig(lora=LoraSettings(targets=("query",))))
    with pytest.raises(ValueError, match="targets names lm_head"):  # it would be accepted and never trained
        make_policy(tiny_model(), LearnerConfig(lora=LoraSettings(targets=("q_proj", "lm_head"))))
