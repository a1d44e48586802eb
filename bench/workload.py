"""What the learner's benchmarks train on: random models of a stated shape, and episodes of stated lengths that they sampled."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.batch import NO_TURN, NO_VERSION, EpisodeBatch
from learner.config import LearnerConfig
from learner.model import Policy, make_policy, score
from learner.packing import flatten, plan_micro_batches
from learner.trainer import PolicyTrainer
from trajectories.schema import WeightVersion

CPU = torch.device("cpu")
VERSION = WeightVersion(1, 0)
LEARNING_RATE = 1e-7  # rewards are noise here, and the model must stay the one that sampled the tokens
GROUP = 8
# Segments of one episode: tokens that the model wrote are positive, tokens of prompts and documents negative.
Segments = list[int]


def demo_episodes() -> list[list[Segments]]:
    """Three steps of a demo run, one in each phase; the file says how they were recorded."""
    stored = json.loads((Path(__file__).parent / "demo_lengths.json").read_text(encoding="utf-8"))
    return [[list(segments) for segments in step] for step in stored["steps"]]


def search_episodes(lengths: list[int]) -> list[Segments]:
    """One search each: a question, a turn of the model, a document, a turn of the model, which wrote half of the tokens."""
    return [[-(n // 8), n // 4, -(n - n // 8 - 2 * (n // 4)), n // 4] for n in lengths]


def shape(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocabulary: int) -> Qwen2Config:
    """A Qwen2 of this shape, with a tied output layer as the small ones have it."""
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


DEMO = shape(hidden=128, layers=2, heads=4, kv_heads=4, ffn=384, vocabulary=136)
SMALL = shape(hidden=512, layers=8, heads=8, kv_heads=2, ffn=1408, vocabulary=16_384)  # 31M parameters, 23M in its layers
MEDIUM = shape(hidden=768, layers=12, heads=12, kv_heads=4, ffn=2560, vocabulary=16_384)  # 102M parameters, 90M in its layers


def random_model(config: Qwen2Config) -> Qwen2ForCausalLM:
    """The same weights for the same shape, in every process."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def batch_of(episodes: list[Segments], vocabulary: int) -> EpisodeBatch:
    """Random tokens and rewards in segments of these lengths, in groups of eight; sampled by nobody yet."""
    rng = np.random.default_rng(0)
    lengths = [sum(map(abs, segments)) for segments in episodes]
    tokens = sum(lengths)
    mask_t = np.concatenate([np.full(abs(part), part > 0) for part in itertools.chain.from_iterable(episodes)])
    version = np.where(mask_t, np.int32(VERSION.number), np.int32(NO_VERSION))
    return EpisodeBatch(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        token_ids_t=rng.integers(0, vocabulary, tokens, dtype=np.int32),
        loss_mask_t=mask_t,
        behaviour_t=np.zeros(tokens, np.float32),
        generation_t=np.where(mask_t, np.int32(VERSION.generation), np.int32(NO_VERSION)),
        number_t=version,
        turn_t=np.where(mask_t, np.int32(0), np.int32(NO_TURN)),
        process_t=np.zeros(tokens, np.float32),
        reward_e=rng.random(len(episodes), dtype=np.float32),
        temperature_e=np.ones(len(episodes), np.float32),
        group_e=np.arange(len(episodes)) // GROUP,
    )


def sampled(batch: EpisodeBatch, policy: Policy, config: LearnerConfig, device: torch.device = CPU) -> EpisodeBatch:
    """The batch as if this very policy had sampled its tokens, so that nothing is masked, clipped or refused."""
    behaviour_t: NDArray[np.float32] = np.zeros(len(batch.token_ids_t), np.float32)
    for part in plan_micro_batches(batch.lengths, np.arange(len(batch)), 1, config.microbatch_tokens)[0]:
        micro = flatten(batch, part, device)
        behaviour_t[micro.flat_n.cpu().numpy()] = score(policy, micro).cpu().numpy()
    return dataclasses.replace(batch, behaviour_t=behaviour_t)


def settings(**changes: object) -> LearnerConfig:
    """GRPO with one optimiser step for a batch: one forward and one backward pass over every token."""
    return LearnerConfig.model_validate({"minibatches": 1, **changes})


def step(trainer: PolicyTrainer, batch: EpisodeBatch) -> dict[str, float]:
    """One whole learner step: advantages, packing, forward, loss, backward, clipping, AdamW."""
    return trainer.step(batch, step=1, current=VERSION, learning_rate=LEARNING_RATE)


def prepared(config: Qwen2Config, episodes: list[Segments], learner: LearnerConfig) -> tuple[Policy, EpisodeBatch]:
    """A policy of this shape and a batch that it sampled."""
    policy = make_policy(random_model(config), learner)
    return policy, sampled(batch_of(episodes, config.vocab_size), policy, learner)
