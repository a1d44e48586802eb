"""An exported model elsewhere: transformers and a vLLM engine find the log-probabilities that the learner found."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.batch import read_batch
from learner.checkpoint import CheckpointWriter
from learner.checkpoint_folder import complete
from learner.config import LearnerConfig, LoraSettings
from learner.export import export_checkpoint
from learner.model import load_causal_lm, make_policy, score
from learner.packing import Bin, flatten
from learner.trainer import PolicyTrainer
from tasks.config import ColdStartConfig
from tasks.tiny_model import make_model, save
from tasks.vocabulary import build_tokenizer
from tests.learner_episodes import sample_group
from trajectories.schema import WeightVersion

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MEAN_DIFFERENCE = 1e-4
TEXT = "drug-dose lavan rct 42 . <search> kg"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The demo's kind of model, trained with adapters, and what its learner says of episodes that it was not trained on."""
    folder: Path = tmp_path_factory.mktemp("export")
    model = make_model(ColdStartConfig(), seed=0)
    save(model, folder / "base")
    config = LearnerConfig(lora=LoraSettings(rank=4, alpha=16))
    trainer = PolicyTrainer(make_policy(load_causal_lm(folder / "base"), config), config)
    for step in range(2):
        batch = read_batch([sample_group(model, 10 * step + group) for group in range(2)])
        trainer.step(batch, step=step, current=WeightVersion(1, step), learning_rate=1e-2)
    writer = CheckpointWriter(lambda *report: None)
    writer.start(trainer, folder / "checkpoint")
    writer.wait()
    complete(folder / "checkpoint", ranks=1)
    export_checkpoint(folder / "checkpoint", folder / "base", folder / "model", torch.float32)
    batch = read_batch([sample_group(model, 100 + group) for group in range(2)])
    logprobs_n = score(trainer.policy, flatten(batch, Bin(np.arange(len(batch))))).numpy()
    moved = np.abs(logprobs_n - batch.behaviour_t[batch.loss_mask_t]).mean()
    assert moved > 100 * MEAN_DIFFERENCE, "training must have changed what is compared"
    episodes = [batch.token_ids_t[start:end].tolist() for start, end in zip(batch.offsets, batch.offsets[1:], strict=False)]
    return SimpleNamespace(folder=folder / "model", batch=batch, episodes=episodes, logprobs_n=logprobs_n)


def assert_same(exported: SimpleNamespace, logprobs_t: list[float]) -> None:
    found_n = np.array(logprobs_t)[exported.batch.loss_mask_t]
    assert np.abs(found_n - exported.logprobs_n).mean() <= MEAN_DIFFERENCE


@torch.no_grad()
def test_transformers_agrees_with_the_learner(exported: SimpleNamespace) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported.folder)
    logprobs_t: list[float] = []
    for ids in exported.episodes:
        scores = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        logprobs_t += [0.0, *scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]
    assert_same(exported, logprobs_t)


def test_vllm_agrees_with_the_learner_and_reads_text_as_it_was_trained(
    exported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **os.environ}.items():
        monkeypatch.setenv(name, value)
    from vllm import LLM, SamplingParams

    # Left alone, vLLM computes a float32 folder in bfloat16.
    llm = LLM(
        str(exported.folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=64 << 20,
        max_num_seqs=8,
    )
    try:
        only_score = SamplingParams(max_tokens=1, prompt_logprobs=0)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in exported.episodes], only_score, use_tqdm=False)
        read = llm.generate([TEXT], only_score, use_tqdm=False)[0].prompt_token_ids
    finally:
        llm.llm_engine.engine_core.shutdown()
    assert read == build_tokenizer().encode(TEXT)
    logprobs_t = [
        0.0 if position is None else position[token].logprob
        for ids, output in zip(exported.episodes, outputs, strict=True)
        for token, position in zip(ids, output.prompt_logprobs, strict=True)
    ]
    assert_same(exported, logprobs_t)
