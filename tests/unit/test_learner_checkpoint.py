"""Training state on disk: written beside the training, read by any number of ranks, refused by name when it does not fit."""

from __future__ import annotations

import asyncio
import shutil
import threading

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import AutoModelForCausalLM

from learner import checkpoint as checkpoints
from learner.batch import read_batch
from learner.checkpoint import CheckpointWriter, load_training_state
from learner.checkpoint_folder import CheckpointRefused, complete, rank_files, read_state, unfinished, write_state
from learner.config import LearnerConfig, LoraSettings
from learner.exchange import Mailbox
from learner.export import export_checkpoint, export_model
from learner.loading import load_sharded
from learner.model import make_critic, make_policy
from learner.shards import weight_shards
from learner.tensor_files import Entry, FileRefused, TensorFiles, write_tensors
from learner.trainer import PolicyTrainer
from tests.learner_episodes import sample_group, tiny_model, tiny_model_dir
from trajectories.schema import WeightVersion

CPU = torch.device("cpu")
LORA = LearnerConfig(lora=LoraSettings(rank=4, alpha=16))
PPO = LearnerConfig(algorithm="ppo")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def batches():
    return [read_batch([sample_group(tiny_model(), 10 * step + group) for group in range(3)]) for step in range(4)]


def load_policy(model_dir, config=LearnerConfig()):
    return load_sharded(model_dir, lambda causal_lm: make_policy(causal_lm, config), CPU)


def make_trainer(model_dir, config=LearnerConfig()):
    critic = load_sharded(model_dir, lambda causal_lm: make_critic(causal_lm, config), CPU) if config is PPO else None
    return PolicyTrainer(load_policy(model_dir, config), config, critic=critic)


def train(trainer, batches, steps):
    for step in steps:
        trainer.step(batches[step], step=step, current=WeightVersion(1, step), learning_rate=1e-2)


def save(trainer, folder):
    reports = []
    writer = CheckpointWriter(lambda *report: reports.append(report))
    writer.start(trainer, folder)
    writer.wait()
    assert reports == [(str(folder), "")]
    complete(folder, ranks=1)
    return folder


def trained_state(trainer):
    return {name: held.tensor.clone() for name, held in checkpoints._rows(trainer).items() if "random" not in name}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("config", [LearnerConfig(), LORA, PPO], ids=["all", "lora", "ppo"])
def test_resume_from_a_checkpoint_is_the_straight_run_bit_for_bit(tmp_path, model_dir, batches, config, monkeypatch):
    trained_on = threading.Event()

    def write_late(path, entries):
        assert trained_on.wait(60)
        write_tensors(path, entries)

    monkeypatch.setattr(checkpoints, "write_tensors", write_late)
    straight, writer = make_trainer(model_dir, config), CheckpointWriter(lambda *report: None)
    train(straight, batches, range(2))
    torch.manual_seed(1234)
    writer.start(straight, tmp_path / "two")
    drawn = torch.rand(3)
    train(straight, batches, range(2, 4))  # while the state of two steps waits to be written
    trained_on.set()
    writer.wait()
    complete(tmp_path / "two", ranks=1)
    resumed = make_trainer(model_dir, config)
    load_training_state(resumed, tmp_path / "two")
    assert torch.equal(torch.rand(3), drawn)
    train(resumed, batches, range(2, 4))
    assert_equal(trained_state(resumed), trained_state(straight))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}, "nothing is pickled"


def test_a_reference_that_moved_is_part_of_the_checkpoint(tmp_path, model_dir, batches):
    kept = LearnerConfig(kl_coefficient=0.1, kl_in="loss")

    def with_reference():
        return PolicyTrainer(load_policy(model_dir), kept, reference=load_policy(model_dir))

    straight = with_reference()
    train(straight, batches, [0])
    assert not any("reference" in name for name in trained_state(straight)), "the model's own folder has it"
    straight.refresh_reference()
    assert all(torch.equal(a, b) for a, b in zip(straight.reference.parameters(), straight.policy.parameters(), strict=True))
    train(straight, batches, [1])
    folder = save(straight, tmp_path / "checkpoint")
    train(straight, batches, [2])
    resumed = with_reference()
    load_training_state(resumed, folder)
    train(resumed, batches, [2])
    assert_equal(trained_state(resumed), trained_state(straight))


def test_the_copy_is_taken_into_the_memory_of_the_last_one(tmp_path, model_dir):
    trainer, writer = make_trainer(model_dir), CheckpointWriter(lambda *report: None)
    addresses = []
    for name in ("one", "two"):
        writer.start(trainer, tmp_path / name)
        writer.wait()
        addresses.append({name: copy.data_ptr() for name, copy in writer._copy.items()})
    assert addresses[0] == addresses[1]


def test_adapters_alone_are_saved_where_only_they_are_trained(tmp_path, model_dir):
    names = TensorFiles(rank_files(save(make_trainer(model_dir, LORA), tmp_path / "c"), 1)).names
    assert all("lora" in name or "random" in name for name in names)


def test_torch_reads_the_files_as_its_own_format(tmp_path, model_dir):
    trainer = make_trainer(model_dir)
    folder = save(trainer, tmp_path / "c")
    expected = trained_state(trainer)
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert_equal(found, expected)


def test_rows_are_found_in_whichever_rank_wrote_them(tmp_path):
    whole = torch.arange(35.0).reshape(7, 5)
    parts = [(0, whole[:3]), (3, whole[3:6]), (6, whole[6:])]
    for rank, (first, rows) in enumerate(parts):
        write_tensors(tmp_path / f"{rank}.safetensors", [Entry("w", rows.dtype, tuple(rows.shape), first, rows.detach)])
    files = TensorFiles(tmp_path / f"{rank}.safetensors" for rank in (2, 0, 1))
    assert files.shape("w") == (7, 5)
    for first in range(7):
        for count in range(1, 8 - first):
            assert torch.equal(files.rows("w", first, count), whole[first : first + count])
    by_torch = {"w": torch.zeros(7, 5)}
    load(by_torch, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(by_torch["w"], whole)


def change_state(change):
    def break_it(folder):
        state = read_state(folder)
        change(state)
        write_state(folder, state)

    return break_it


def cut(path, to):
    path.write_bytes(path.read_bytes()[:to])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no checkpoint in .*checkpoint"),
        (lambda folder: cut(folder / "state.json", 40), "state.json is cut off"),
        (change_state(lambda state: state.update(vocabulary=65)), "its vocabulary is 65, here 64"),
        (change_state(lambda state: state.update(architecture="LlamaForCausalLM")), "its architecture is LlamaForCausalLM"),
        (change_state(lambda state: state.update(lora={"rank": 4})), "its lora is"),
        (change_state(lambda state: state["trained"].update(critic={})), "a critic is trained there only"),
        (change_state(lambda state: state["trained"]["policy"].pop("causal_lm.model.norm.weight")), "norm.weight is absent"),
        (change_state(lambda state: state.update(ranks=2)), "rank-00000-of-00002.safetensors is missing"),
        (lambda folder: cut(rank_files(folder, 1)[0], -100), "rank-00000-of-00001.safetensors is truncated or corrupt"),
        (lambda folder: cut(rank_files(folder, 1)[0], 4), "rank-00000-of-00001.safetensors is truncated or corrupt"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_changes(tmp_path, model_dir, batches, damage, message):
    trainer = make_trainer(model_dir)
    folder = save(trainer, tmp_path / "checkpoint")
    train(trainer, batches, [0])
    before = trained_state(trainer)
    damage(folder)
    with pytest.raises((CheckpointRefused, FileRefused), match=message) as refused:
        load_training_state(trainer, folder)
    assert "\n" not in str(refused.value)
    assert_equal(trained_state(trainer), before)


def test_a_checkpoint_has_its_name_only_when_every_rank_has_written(tmp_path, model_dir):
    writer = CheckpointWriter(lambda *report: None)
    writer.start(make_trainer(model_dir), tmp_path / "c")
    writer.wait()
    with pytest.raises(CheckpointRefused, match=r"rank-00000-of-00002.safetensors is not to be seen"):
        complete(tmp_path / "c", ranks=2)
    assert not (tmp_path / "c").exists() and unfinished(tmp_path / "c").is_dir()


def test_a_checkpoint_that_cannot_be_written_says_why(tmp_path, model_dir):
    reports = []
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter(lambda *report: reports.append(report))
    writer.start(make_trainer(model_dir), tmp_path / "file" / "c")
    writer.wait()
    assert "NotADirectoryError" in reports[0][1] and "\n" not in reports[0][1]


def test_the_mailbox_waits_for_every_rank_and_names_those_that_are_late():
    async def story():
        mailbox = Mailbox(ranks=2)
        number = await mailbox.put("checkpoint")
        await mailbox.checkpointed(1, "c")
        late = await mailbox.written("c", timeout_s=0.01)
        for rank in (0, 1):
            await mailbox.next_order(rank, timeout_s=1)
            await mailbox.post(rank, number, None)
        waiting = asyncio.ensure_future(mailbox.written("c", timeout_s=10))
        await mailbox.put("step")  # orders go on while a checkpoint is written
        await mailbox.checkpointed(0, "c")
        done = await waiting
        await mailbox.fail(1, "disk full")
        return late, done, await mailbox.written("d", timeout_s=10)

    late, done, failed = asyncio.run(story())
    assert late.failure == "checkpoint c was not written within 0 s by ranks [0]"
    assert done.failure == ""
    assert failed.failure == "learner worker 1 of 2: disk full"


@pytest.mark.parametrize("config", [LearnerConfig(), LORA], ids=["all", "lora"])
def test_an_export_from_a_checkpoint_is_the_policy_in_any_number_of_files(tmp_path, model_dir, batches, config):
    trainer = make_trainer(model_dir, config)
    train(trainer, batches, range(2))
    folder = save(trainer, tmp_path / "c")
    export_model(trainer.policy, model_dir, tmp_path / "live", torch.float32)
    export_checkpoint(folder, model_dir, tmp_path / "one", torch.float32)
    export_checkpoint(folder, model_dir, tmp_path / "many", torch.float32, file_bytes=8_000)
    export_checkpoint(folder, model_dir, tmp_path / "half", torch.bfloat16)
    expected = {shard.name: shard.rows for shard in weight_shards(trainer.policy)}
    for name in ("live", "one", "many"):
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert opened.dtype == torch.float32
        assert_equal(dict(opened.named_parameters()), expected)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert_equal(dict(half.named_parameters()), {name: rows.bfloat16() for name, rows in expected.items()})
