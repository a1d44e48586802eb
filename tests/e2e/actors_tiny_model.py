"""A tiny random Qwen2 with tied embeddings and a word-level tokenizer, made on the spot, and publications of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.prompting import TAGS
from trajectories.checksum import weights_checksum
from trajectories.publication import Canary, Publication
from trajectories.schema import WeightVersion

WORDS = ["what", "dose", "lomab", "?", "rct", "kg", *[str(digit) for digit in range(10)]]
CANARY_IDS = [2, 5, 9, 4, 13, 7, 20, 11, 3, 17, 8, 6]


def build_tokenizer(more_tags: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<unk>", "<pad>", *TAGS, *WORDS, *more_tags])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(TAGS),
    )
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return wrapped


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as real models have it: tags take several tokens, and one token (`>` and two line ends) runs past them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [("Ċ", "Ċ"), (">", "ĊĊ")]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet, *("".join(pair) for pair in merged)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merged))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return wrapped


def build_model(seed: int, tokenizer: PreTrainedTokenizerFast | None = None) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer or build_tokenizer()),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=2,
    )
    return Qwen2ForCausalLM(config).float().eval()


def save_model(folder: Path, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    build_model(seed, tokenizer).save_pretrained(folder)
    (tokenizer or build_tokenizer()).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logprobs_of(model: Any, token_ids: list[int]) -> list[float]:
    """transformers' log-probability of every token after the first."""
    logits = model(torch.tensor([token_ids])).logits[0, :-1].float()
    picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(token_ids[1:])[:, None])
    return [float(value) for value in picked[:, 0]]


def publish(model: Any, folder: Path, number: int) -> Publication:
    path = str(folder / f"weights-{number}.safetensors")
    names = {id(tensor): name for name, tensor in reversed(list(model.state_dict(keep_vars=True).items()))}
    save_file(
        {name: t.detach().contiguous() for name, t in model.state_dict(keep_vars=True).items() if names[id(t)] == name}, path
    )
    canary = Canary(CANARY_IDS, logprobs_of(model, CANARY_IDS))
    return Publication(WeightVersion(1, number), path, weights_checksum(path), Path(path).stat().st_size, canary)
