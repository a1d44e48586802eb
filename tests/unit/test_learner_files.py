"""What the learner reads and writes: Arrow rows, weights with their checksum, checkpoints, exported models."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner.batch import read_batch
from learner.checkpoint import load_training_state, save_training_state
from learner.config import LearnerConfig
from learner.export import export_model
from learner.model import Policy, load_policy
from learner.publishing import WeightPublisher
from learner.trainer import PolicyTrainer
from tests.learner_episodes import FIRST, sample_group, tiny_model, tiny_model_dir
from trajectories.checksum import weights_checksum
from trajectories.schema import WeightVersion


def test_batch_equals_the_rows_it_came_from_slices_included():
    tables = [sample_group(tiny_model(), group) for group in range(3)]
    sliced = [tables[0].slice(1, 2), tables[1], pa.concat_tables([tables[2].slice(0, 1), tables[2].slice(3)])]
    batch = read_batch(sliced)
    rows = [row for table in sliced for row in table.to_pylist()]
    assert len(batch.reward_e) == len(rows) == 8
    for e, row in enumerate(rows):
        part = slice(batch.offsets[e], batch.offsets[e + 1])
        assert batch.token_ids_t[part].tolist() == row["token_ids"]
        assert batch.loss_mask_t[part].tolist() == row["loss_mask"]
        assert batch.behaviour_t[part].tolist() == row["logprobs"]
        assert (batch.sampled_by(FIRST)[part] == row["loss_mask"]).all()
        assert rows[int(np.argmax(batch.group_e == batch.group_e[e]))]["group_id"] == row["group_id"]
    assert not batch.sampled_by(WeightVersion(2, 0)).any()


def test_one_table_is_read_without_a_copy_of_its_numbers():
    table = sample_group(tiny_model(), 0)
    batch = read_batch([table])
    address = table["token_ids"].chunk(0).values.buffers()[1].address
    assert batch.token_ids_t.__array_interface__["data"][0] == address


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_mask": lambda row: [True, *row["loss_mask"][1:]]}, "g0e1: its first token carries loss"),
        ({"logprobs": lambda row: row["logprobs"][:-1]}, "g0e1: logprobs is not as long"),
        ({"versions": lambda row: []}, "g0e1: a trained token has no weight version"),
        ({"reward": lambda row: float("nan")}, "g0e1: its reward is not finite"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_by_name(change, message):
    table = sample_group(tiny_model(), 0)
    rows = table.to_pylist()
    for name, value in change.items():
        rows[1][name] = value(rows[1])
    with pytest.raises(ValueError, match=message):
        read_batch([pa.Table.from_pylist(rows, schema=table.schema)])


def test_checksum_sees_every_byte_name_dtype_and_shape_and_nothing_else(tmp_path):
    def checksum(tensors, **metadata):
        save_file(tensors, tmp_path / "w", metadata=metadata or None)
        return weights_checksum(tmp_path / "w")

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    reference = checksum(tensors)
    assert checksum(dict(reversed(tensors.items())), note="another header") == reference
    one_bit = {**tensors, "a": tensors["a"].clone()}
    one_bit["a"].view(torch.int32)[1, 2] ^= 1
    changed = [
        one_bit,
        {"a": tensors["a"].reshape(3, 2), "b": tensors["b"]},
        {"a": tensors["b"], "b": tensors["a"]},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {"a": tensors["a"]},
    ]
    assert len({reference, *(checksum(other) for other in changed)}) == len(changed) + 1
    content = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(content[:-3])
    with pytest.raises(ValueError, match="cut off"):
        weights_checksum(tmp_path / "w")


@pytest.mark.parametrize("tied", [True, False])
def test_publication_is_what_transformers_would_save_with_the_canary_it_would_compute(tmp_path, tied):
    model_dir = tiny_model_dir(tmp_path / "model", tied=tied)
    policy = load_policy(model_dir)
    canary = [3, 1, 4, 1, 5, 9, 2, 6]
    publisher = WeightPublisher(tmp_path / "weights", canary, torch.float32, rank=0, device=torch.device("cpu"))
    publications = [publisher.publish(policy, WeightVersion(1, number)) for number in range(9, 14)]
    newest = publications[-1]
    saved, published = load_file(model_dir / "model.safetensors"), load_file(newest.path)
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in saved)
    assert ("lm_head.weight" in published) is not tied
    scores = tiny_model(tied=tied)(torch.tensor([canary])).logits[0].detach().log_softmax(-1)
    expected = [float(scores[i, token]) for i, token in enumerate(canary[1:])]
    np.testing.assert_allclose(newest.canary.logprobs, expected, atol=1e-5)
    assert newest.checksum == weights_checksum(newest.path) == weights_checksum(model_dir / "model.safetensors")
    kept = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert kept == ["1.11.safetensors", "1.12.safetensors", "1.13.safetensors"]


def test_resume_from_a_checkpoint_is_the_straight_run_bit_for_bit(tmp_path):
    batches = [read_batch([sample_group(tiny_model(), 10 * step + group) for group in range(3)]) for step in range(4)]

    def train(trainer, steps):
        for step in steps:
            trainer.step(batches[step], step=step, current=WeightVersion(1, step), learning_rate=1e-2, temperature=1.0)

    straight, before = (PolicyTrainer(Policy(tiny_model()), LearnerConfig()) for _ in range(2))
    train(straight, range(4))
    train(before, range(2))
    torch.manual_seed(1234)
    save_training_state(before, tmp_path)
    drawn = torch.rand(3)
    resumed = PolicyTrainer(Policy(tiny_model(seed=5)), LearnerConfig())
    load_training_state(resumed, tmp_path)
    assert torch.equal(torch.rand(3), drawn)
    train(resumed, range(2, 4))
    expected = dict(straight.policy.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in resumed.policy.named_parameters())
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}, "nothing may be pickled"


def test_reset_optimizer_forgets_the_moments():
    trainer = PolicyTrainer(Policy(tiny_model()), LearnerConfig())
    trainer.step(read_batch([sample_group(tiny_model(), 0)]), step=0, current=FIRST, learning_rate=1e-3, temperature=1.0)
    assert any(state["exp_avg"].any() for state in trainer.optimizer.state.values())
    trainer.reset_optimizer()
    assert not any(state["exp_avg"].any() or state["step"] for state in trainer.optimizer.state.values())


def test_an_exported_model_is_opened_by_transformers_with_its_neighbours(tmp_path):
    model_dir = tiny_model_dir(tmp_path / "model")
    (model_dir / "tokenizer.json").write_text("{}")
    policy = load_policy(model_dir)
    with torch.no_grad():
        policy.causal_lm.model.norm.weight += 1
    export_model(policy, model_dir, tmp_path / "exported", torch.float32, rank=0)
    assert (tmp_path / "exported" / "tokenizer.json").is_file()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.equal(opened.model.norm.weight, policy.causal_lm.model.norm.weight)
    assert opened.lm_head.weight.data_ptr() == opened.model.embed_tokens.weight.data_ptr()
