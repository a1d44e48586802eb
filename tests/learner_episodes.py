"""Episodes sampled from a tiny random Qwen2 itself, so that their behaviour log-probabilities are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from trajectories.schema import Episode, Segment, VersionSpan, WeightVersion, check, to_table

VOCABULARY = 64
FIRST = WeightVersion(1, 0)


def tiny_model(seed: int = 0, tied: bool = True) -> Qwen2ForCausalLM:
    """Two layers, 16 wide, with an initialisation wide enough that its next token is not a coin toss."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def tiny_model_dir(folder: Path, seed: int = 0, tied: bool = True) -> Path:
    """The same model as a Hugging Face folder."""
    tiny_model(seed, tied).save_pretrained(folder)
    return folder


@torch.no_grad()
def sample_group(
    model: Qwen2ForCausalLM,
    group: int,
    n: int = 4,
    version: WeightVersion = FIRST,
    temperature: float = 1.0,
    equal_rewards: bool = False,
) -> pa.Table:
    """One question's episodes: prompt, a model turn, a document, a second model turn; every length is drawn."""
    rng = np.random.default_rng(group)
    generator = torch.Generator().manual_seed(group)
    prompt = rng.integers(0, VOCABULARY, rng.integers(3, 9)).tolist()
    return to_table([_sample(model, group, i, prompt, rng, generator, version, temperature, equal_rewards) for i in range(n)])


def _sample(
    model: Qwen2ForCausalLM,
    group: int,
    index: int,
    prompt: list[int],
    rng: np.random.Generator,
    generator: torch.Generator,
    version: WeightVersion,
    temperature: float,
    equal_rewards: bool,
) -> Episode:
    tokens, mask, logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)
    segments, versions = [Segment("prompt", 0, len(prompt), -1)], []
    for turn in range(2):
        start = len(tokens)
        for _ in range(int(rng.integers(1, 12))):
            scores = (model(torch.tensor([tokens])).logits[0, -1] / temperature).log_softmax(-1)
            token = int(torch.multinomial(scores.exp(), 1, generator=generator))
            tokens.append(token)
            mask.append(True)
            logprobs.append(float(scores[token]))
        segments.append(Segment("model", start, len(tokens), turn))
        versions.append(VersionSpan(*version, start, len(tokens)))
        if turn == 0:
            document = rng.integers(0, VOCABULARY, rng.integers(2, 7)).tolist()
            segments.append(Segment("document", len(tokens), len(tokens) + len(document), 0))
            tokens += document
            mask += [False] * len(document)
            logprobs += [0.0] * len(document)
    # What the tiny model can learn: even tokens pay.
    reward = 1.0 if equal_rewards else float(np.mean([t % 2 == 0 for t, m in zip(tokens, mask, strict=True) if m]))
    episode = Episode(
        run_id="test",
        group_id=f"g{group}",
        episode_id=f"g{group}e{index}",
        question_id=f"q{group}",
        attempt=0,
        phase="one",
        source="tiny",
        kind="choice",
        token_ids=tokens,
        loss_mask=mask,
        logprobs=logprobs,
        segments=segments,
        versions=versions,
        searches=[],
        reward=reward,
        temperature=temperature,
    )
    assert not (wrong := check(to_table([episode]).to_pylist()[0])), wrong
    return episode
