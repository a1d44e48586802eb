"""Models of Hugging Face folders, read by rows into parameters that were built without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from learner.config import LearnerConfig
from learner.loading import ModelRefused, load_sharded
from learner.model import load_causal_lm, make_critic, make_policy
from learner.tensor_files import FileRefused
from tests.learner_episodes import tiny_model, tiny_model_dir

CPU = torch.device("cpu")
PPO = LearnerConfig(algorithm="ppo")


def load_policy(model_dir):
    return load_sharded(model_dir, lambda causal_lm: make_policy(causal_lm, LearnerConfig()), CPU)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_model_loaded_by_rows_is_the_one_that_transformers_loads(tmp_path):
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    scaled = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    models = {
        "tied": tiny_model(tied=True),
        "untied": tiny_model(tied=False),
        "half": tiny_model().bfloat16(),
        "llama": LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=scaled)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name, max_shard_size="8KB" if name == "untied" else "1GB")
        expected, found = load_causal_lm(tmp_path / name), load_policy(tmp_path / name).causal_lm
        assert_equal(dict(found.named_parameters()), dict(expected.named_parameters()))
        assert_equal(dict(found.named_buffers()), dict(expected.named_buffers()))
        assert (found.lm_head.weight is found.model.embed_tokens.weight) is model.config.tie_word_embeddings
    assert (tmp_path / "untied" / "model.safetensors.index.json").is_file()


def test_a_critic_starts_from_the_backbone_with_values_of_zero(tmp_path):
    model_dir = tiny_model_dir(tmp_path)
    critic = load_sharded(model_dir, lambda causal_lm: make_critic(causal_lm, PPO), CPU)
    assert_equal(dict(critic.backbone.named_parameters()), dict(tiny_model().model.named_parameters()))
    assert not critic.value_head.weight.any() and not critic.value_head.bias.any()


def cut(path, to):
    path.write_bytes(path.read_bytes()[:to])


def rewrite(change):
    def break_it(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return break_it


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


def pickle_it(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(lambda tensors: tensors.pop(NORM)), f"lacks {NORM}"),
        (rewrite(lambda tensors: tensors.update(extra=torch.ones(2))), "holds extra"),
        (rewrite(lambda tensors: tensors.update({NORM: torch.ones(5)})), rf"{NORM} has shape \(5,\)"),
        (rewrite(lambda tensors: tensors.update({EMBEDDING: torch.ones(70, 16)})), "has 70 rows, but vocab_size .* is 64"),
        (lambda folder: cut(folder / "model.safetensors", -10), "model.safetensors is truncated or corrupt"),
        (lambda folder: cut(folder / "model.safetensors", 3), "model.safetensors is truncated or corrupt"),
        (pickle_it, r"pickled weights only \(pytorch_model.bin\).*save_pretrained"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    ],
)
def test_a_model_folder_that_does_not_fit_is_refused_in_one_line(tmp_path, damage, message):
    damage(tiny_model_dir(tmp_path / "model"))
    with pytest.raises((ModelRefused, FileRefused), match=message) as refused:
        load_policy(tmp_path / "model")
    assert "\n" not in str(refused.value)
