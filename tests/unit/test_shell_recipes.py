"""The recipes load, fit their machine, and say what the paper says; what does not fit is refused by name."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from actors.tokens import EpisodeTokenizer, TagStrings
from learner.algorithms import resolve
from medr3.config import load
from medr3.errors import UserError
from medr3.including import shipped_plans
from medr3.ops.memory_check import report_memory
from medr3.run.canary import canary_tokens
from medr3.run.services import check_model, prepare_model
from tasks.questions import Document
from tasks.vocabulary import CHAT_TEMPLATE
from tasks.world import Universe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
DEMO = ROOT / "configs" / "demo.yaml"


def recipe(name, *overrides):
    return load(ROOT / "configs" / "recipes" / f"{name}.yaml", list(overrides))


def dry_run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "medr3.cli", "train", *map(str, arguments), "--dry-run"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_eight_gpus(path):
    config = load(path, [])
    assert config.learner.workers + config.rollout.num_engines * config.rollout.engine.tensor_parallel_size == 8
    assert report_memory(config).problems == []


@pytest.mark.parametrize("name", ["med_r3", "qwen2.5-7b", "qwen2.5-14b"])
def test_med_r3_has_the_published_settings(name):
    config = recipe(name)
    engine = config.rollout.engine
    found = resolve(config.learner)
    assert (found.aggregation, found.clip_low, found.clip_high) == ("token_mean", 0.2, 0.28)
    assert (config.learner.dual_clip, config.learner.gradient_clip, config.learner.kl_coefficient) == (3.0, 1.0, 0.0)
    assert (config.rollout.groups_per_step, config.learner.minibatches, config.rollout.group_size) == (256, 256 // 64, 16)
    assert (config.budget.max_response_tokens, engine.max_model_len) == (14_336, 2_048 + 14_336)
    phases = config.curriculum.phases
    assert [phase.name for phase in phases] == ["reasoning", "retrieval", "joint"]
    assert {(phase.learning_rate, phase.temperature) for phase in phases} == {(1e-6, 1.0)}
    assert [phase.reward for phase in phases] == ["med_r3/reasoning", "med_r3/retrieval", "med_r3/joint"]
    budgets = [config.phase_budget(phase) for phase in phases]
    assert [budget.retrieval for budget in budgets] == [False, True, True]
    assert {(budget.max_searches, budget.top_k) for budget in budgets} == {(4, 5)}


def test_r3_rag_has_the_published_settings():
    config = recipe("r3_rag")
    [phase] = config.curriculum.phases
    budget, learner = config.phase_budget(phase), config.learner
    assert (phase.temperatures, config.rollout.group_size) == ((0.1, 0.4, 0.7, 1.0), 4)
    assert (budget.max_searches, budget.top_k, budget.max_passages, budget.distinct_passages) == (5, 3, 10, True)
    assert (budget.regenerations, phase.reward) == (3, "r3_rag/training")
    assert (learner.algorithm, learner.horizon, learner.gae_lambda, learner.gae_gamma) == ("ppo", "turn", 1.0, 1.0)
    assert (learner.kl_coefficient, learner.clip_low, learner.clip_high) == (0.01, 0.2, 0.2)
    assert (phase.learning_rate, learner.critic.learning_rate) == (5e-7, 9e-6)


def test_med_u1_has_the_published_settings():
    config = recipe("med_u1")
    [phase] = config.curriculum.phases
    assert (config.rollout.group_size, phase.temperature, phase.reward) == (8, 0.6, "med_u1/training")
    assert (config.learner.kl_coefficient, config.learner.kl_estimator, config.learner.kl_in) == (0.001, "k3", "loss")
    assert set(phase.kinds) == {"choice", "number", "text"}
    assert phase.length is not None


def test_medresearcher_has_the_published_settings():
    config = recipe("medresearcher_r1")
    [phase] = config.curriculum.phases
    assert (config.phase_budget(phase).max_searches, phase.reward) == (10, "medresearcher_r1/training")
    assert (config.learner.algorithm, config.rollout.engine.max_model_len) == ("grpo", 32_768)


def test_there_is_a_recipe_a_plan_and_a_reward_for_every_method():
    methods = {"med_r3", "med_u1", "medresearcher_r1", "r3_rag"}
    assert methods <= {path.stem for path in RECIPES}
    assert set(shipped_plans()) == methods | {"demo"}
    assert methods <= {path.stem for path in (ROOT / "configs" / "rewards").glob("*.yaml")}


def test_dry_run_prints_yaml_on_one_stream_and_memory_on_the_other():
    done = dry_run("configs/recipes/qwen2.5-7b.yaml")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["learner"]["workers"] == 4
    lines = done.stderr.splitlines()
    assert lines[0] == "memory, estimated for Qwen2.5-7B of 7,615,616,512 parameters:"
    assert [line.split()[:4] for line in lines if "×" in line] == [
        ["4", "×", "learner", "GPU"], ["4", "×", "learner", "main"], ["4", "×", "engine", "GPU"], ["1", "×", "shared", "memory"],
    ]  # fmt: skip


def test_what_cannot_fit_is_refused_with_a_line_for_each_kind_of_gpu():
    small = ("learner.workers=2", "hardware.learner_gpu_gib=24", "hardware.engine_gpu_gib=24")
    done = dry_run("configs/recipes/qwen2.5-14b.yaml", *small)
    assert done.returncode == 2
    learner, engine = [line for line in done.stderr.splitlines() if line.startswith("medr3: ")]
    assert "of 24 GiB 22.1 can be used; most of it is for AdamW's moments (55.0 GiB): raise learner.workers" in learner
    assert "most of it is for KV cache (38.0 GiB): lower rollout.engine.kv_cache_mib" in engine


def test_the_line_names_what_is_not_set_yet():
    def problem(*overrides, gib=24):
        [line] = report_memory(recipe("qwen2.5-14b", f"hardware.learner_gpu_gib={gib}", *overrides)).problems
        return line.rpartition(": ")[2]

    assert problem("learner.activation_checkpointing=false", "learner.microbatch_tokens=32768") == (
        "set learner.activation_checkpointing to true or lower learner.microbatch_tokens, down to the longest episode of 16384"
    )
    assert problem() == "raise learner.workers or set learner.lora or set learner.cpu_offload to true"
    assert problem("learner.lora={rank: 8}", "learner.cpu_offload=true", gib=16) == (
        "lower rollout.engine.max_model_len, for an episode is never cut"
    )


def test_a_14b_on_four_learners_is_more_than_they_hold():
    assert report_memory(recipe("qwen2.5-14b", "learner.workers=4")).problems


def test_a_cache_that_holds_no_episode_is_refused():
    [line] = report_memory(recipe("qwen2.5-14b", "rollout.engine.kv_cache_mib=2048")).problems
    assert line.startswith("engine: a KV cache of 2048 MiB does not hold one episode of 16384 tokens")


def test_the_demo_tells_its_memory_and_an_unknown_model_is_an_error():
    demo = report_memory(load(DEMO, []))
    assert demo.problems == []
    assert any("learner process" in line for line in demo.table)
    with pytest.raises(UserError, match=r"model\.path: unheard-of has no config\.json, and only these sizes are known"):
        report_memory(load(DEMO, ["model.path=unheard-of"]))


def test_the_estimate_loads_nothing_heavy():
    code = "import medr3.ops.memory_check, sys; print(*sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout == "\n"


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory):
    """A folder as models are published: byte-level BPE, in which no tag is one token."""
    folder = tmp_path_factory.mktemp("model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<|end|>"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return folder


def test_a_model_folder_takes_the_place_of_the_cold_start(real_folder):
    config = load(DEMO, [f"model.path={real_folder}", "world.training_worlds=1"])
    universe = Universe.build(config.world, config.run.seed)
    assert asyncio.run(prepare_model(config, universe, Path("unused"), print)) == real_folder
    tokenizer = EpisodeTokenizer.from_folder(str(real_folder))
    assert isinstance(tokenizer.tags, TagStrings)
    canary = tokenizer.tags.text(canary_tokens(universe, real_folder))
    assert "</search>" in canary
    assert "</answer>" in canary
    shown = tokenizer.tags.text(tokenizer.observation([Document(id="d", text="a gene", evidence_level=1)]))
    assert shown == "<document> a gene </document>"


def test_a_folder_that_prompts_cannot_use_is_refused(real_folder, tmp_path):
    with pytest.raises(UserError, match=r"model\.path: .* has no config\.json"):
        check_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text((real_folder / "tokenizer.json").read_text())
    with pytest.raises(UserError, match="has no chat template"):
        check_model(tmp_path)
