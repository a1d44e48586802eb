"""A tiny Qwen2 checkpoint made on the spot: an ordinary Hugging Face folder that `transformers` and vLLM open as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import ColdStartConfig
from tasks.tokenizer import keep_as_written
from tasks.vocabulary import build_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

ROPE_THETA = 300.0  # contexts are a few hundred tokens; the usual 10,000 leaves most rotary pairs unused
INITIAL_DEVIATION = 0.06
PREVIOUS_TOKEN_OFFSETS = (1, 2, 3)
SHARPNESS = 6.0  # query and key bias of a previous-token head; its attention is nearly one-hot after the softmax
QUIET = 0.1  # factor on these heads' weights, so that at birth their biases alone decide


def make_model(config: ColdStartConfig, seed: int, max_positions: int = 1024) -> Qwen2ForCausalLM:
    """A randomly initialised model whose first heads attend to the previous tokens from birth, by bias and rotation alone.

    Copying is what every answer needs, and previous-token heads are its slow half: with them it forms in hundreds of steps.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            initializer_range=INITIAL_DEVIATION,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _plant_previous_token_heads(model, config.hidden_size // config.heads)
    return model


def _plant_previous_token_heads(model: Qwen2ForCausalLM, head_size: int) -> None:
    import torch

    attention = model.model.layers[0].self_attn
    pairs = head_size // 2  # rotary pair i is (i, i + pairs)
    with torch.no_grad():
        for head, offset in enumerate(PREVIOUS_TOKEN_OFFSETS):
            rows = slice(head * head_size, (head + 1) * head_size)
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[rows] *= QUIET
                projection.bias[rows] = 0.0
            for pair in range(pairs // 2):  # the faster half of the pairs tells neighbours apart; the slow half cannot
                frequency = ROPE_THETA ** (-2 * pair / head_size)
                first, second = head * head_size + pair, head * head_size + pair + pairs
                attention.k_proj.bias[first] = SHARPNESS
                attention.q_proj.bias[first] = SHARPNESS * math.cos(offset * frequency)
                attention.q_proj.bias[second] = -SHARPNESS * math.sin(offset * frequency)


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Weights as safetensors, config and tokenizer, in one folder."""
    model.save_pretrained(str(folder), safe_serialization=True)
    build_tokenizer().save_pretrained(str(folder))
    keep_as_written(folder)
