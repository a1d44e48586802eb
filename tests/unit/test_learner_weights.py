"""Published weights: one file from any number of ranks, a checksum that sees everything, and readers that never see a change."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes

from learner import publishing
from learner.config import LearnerConfig
from learner.model import load_causal_lm, make_policy, shard
from learner.publishing import WeightPublisher, shared_checksum
from learner.shards import WeightShard, weight_shards
from learner.weights_file import SafetensorsLayout, write_shards
from tests.learner_episodes import tiny_model, tiny_model_dir
from trajectories import checksum
from trajectories.checksum import MappedWeights, weights_checksum
from trajectories.schema import WeightVersion

CANARY = [3, 1, 4, 1, 5, 9, 2, 6]
CPU = torch.device("cpu")
# Rows that neither 2 nor 3 ranks share evenly, fewer rows than ranks, and one tensor longer than a page.
TENSORS = {
    "matrix": torch.arange(35.0).reshape(7, 5),
    "one_row": torch.full((1, 3), 0.5),
    "vector": torch.linspace(-1, 1, 10),
    "long": torch.arange(9000.0).reshape(9, 1000) / 7,
}


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder where weights are published in earnest: its file system decides what may be reused."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def make_publisher(folder: Path) -> WeightPublisher:
    return WeightPublisher(folder, CANARY, torch.float32, rank=0, device=CPU)


def policy_of(model):
    return make_policy(model, LearnerConfig())


def rows_of(rank: int, ranks: int) -> Iterator[WeightShard]:
    """The rows that FSDP gives to a rank: equal parts, the last ones shorter or empty."""
    for name, tensor in TENSORS.items():
        per_rank = -(-len(tensor) // ranks)
        first = min(rank * per_rank, len(tensor))
        yield WeightShard(name, tuple(tensor.shape), first, tensor[first : first + per_rank])


# --- the file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_ranks_writes_the_same_file_over_whatever_was_there(tmp_path, dtype):
    layout = SafetensorsLayout.of({name: tuple(tensor.shape) for name, tensor in TENSORS.items()}, dtype)
    contents = set()
    for ranks in (1, 2, 3, 5):
        path = tmp_path / f"{ranks}.safetensors"
        path.write_bytes(b"\xff" * 1000 * ranks**3)  # once shorter, once longer than the file will be
        for rank in range(ranks):
            write_shards(path, layout, rows_of(rank, ranks), dtype, rank)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor.to(dtype)) for name, tensor in TENSORS.items())
    save_file({name: tensor.to(dtype) for name, tensor in TENSORS.items()}, tmp_path / "saved")
    assert weights_checksum(path) == weights_checksum(tmp_path / "saved")


def test_a_full_disk_is_one_line_and_leaves_no_file(shared_memory):
    layout = SafetensorsLayout.of({"huge": (2**20, 2**30)}, torch.float32)
    with pytest.raises(
        RuntimeError, match=r"has no room for 4,294,967,296 MiB of weights, [\d,]+ MiB are free: make it larger"
    ):
        write_shards(shared_memory / "w", layout, [], torch.float32, rank=0)
    assert not list(shared_memory.iterdir())


# --- the checksum


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


def test_no_byte_of_many_blocks_changes_unseen_and_ranks_share_the_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksum, "BLOCK_BYTES", 64)
    save_file({"a": torch.arange(50.0), "b": torch.arange(7.0)}, tmp_path / "w")
    with MappedWeights(tmp_path / "w") as weights:
        whole = weights.digests()
        assert len(whole) == 4 + 1
        for ranks in (2, 3, 7):
            parts = [weights.digests(rank, ranks) for rank in range(ranks)]
            assert [parts[block % ranks][block // ranks] for block in range(len(whole))] == whole
        swapped = weights.checksum([whole[1], whole[0], *whole[2:]])
        begins, seen = [tensor.begin for tensor in weights.tensors], {weights.checksum(whole), swapped}
    content = bytearray((tmp_path / "w").read_bytes())
    changes = range(min(begins), len(content))
    for position in changes:
        content[position] ^= 16
        (tmp_path / "w").write_bytes(content)
        seen.add(weights_checksum(tmp_path / "w"))
        content[position] ^= 16
    assert len(seen) == 2 + len(changes)


# --- publishing


@pytest.mark.parametrize("tied", [True, False])
def test_publication_is_what_transformers_would_save_with_the_canary_it_would_compute(tmp_path, tied):
    model_dir = tiny_model_dir(tmp_path / "model", tied=tied)
    policy = policy_of(load_causal_lm(model_dir))
    publisher = make_publisher(tmp_path / "weights")
    newest = [publisher.publish(policy, WeightVersion(1, number)) for number in range(9, 14)][-1]
    saved, published = load_file(model_dir / "model.safetensors"), load_file(newest.path)
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in saved)
    assert ("lm_head.weight" in published) is not tied
    scores = tiny_model(tied=tied)(torch.tensor([CANARY])).logits[0].detach().log_softmax(-1)
    expected = [float(scores[i, token]) for i, token in enumerate(CANARY[1:])]
    np.testing.assert_allclose(newest.canary.logprobs, expected, atol=1e-5)
    assert newest.checksum == weights_checksum(newest.path) == weights_checksum(model_dir / "model.safetensors")
    assert newest.nbytes == Path(newest.path).stat().st_size
    kept = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert kept == ["1.11.safetensors", "1.12.safetensors", "1.13.safetensors"]


@pytest.mark.parametrize("reader", ["none", "opened", "mapped"])
def test_the_memory_of_an_outdated_version_is_reused_unless_somebody_reads_it(shared_memory, reader):
    publisher, versions = make_publisher(shared_memory), [WeightVersion(1, number) for number in range(4)]
    policies = [policy_of(tiny_model(seed)) for seed in range(4)]
    first = Path(publisher.publish(policies[0], versions[0]).path)
    inode, before = first.stat().st_ino, first.read_bytes()
    opened = first.open("rb") if reader == "opened" else None
    mapped = load_file(first) if reader == "mapped" else {}
    for policy, version in zip(policies[1:], versions[1:], strict=True):
        newest = publisher.publish(policy, version)
    assert not first.exists()
    assert (Path(newest.path).stat().st_ino == inode) is (reader == "none")
    assert weights_checksum(newest.path) == newest.checksum
    if opened:
        with opened:
            assert opened.read() == before
    expected = {shard.name: shard.rows for shard in weight_shards(policies[0])}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mapped.items())


def test_a_killed_writer_leaves_no_file_under_the_name_of_its_version(tmp_path, monkeypatch):
    policy, publisher = policy_of(tiny_model()), make_publisher(tmp_path)
    good = publisher.publish(policy, WeightVersion(1, 0))

    def killed_halfway(policy):
        yield from list(weight_shards(policy))[:3]
        os._exit(9)

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "weight_shards", killed_halfway)
        writer = multiprocessing.get_context("fork").Process(target=publisher.publish, args=(policy, WeightVersion(1, 1)))
        writer.start()
        writer.join()
    assert writer.exitcode == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.0.safetensors", "1.1.unfinished"]
    assert weights_checksum(good.path) == good.checksum
    publisher.publish(policy, WeightVersion(2, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.0.safetensors", "2.1.safetensors"]


# --- real ranks


def rank_main(rank: int, ranks: int, folder: Path, own_folder: Path | None) -> None:
    """One rank of FSDP2 publishes four versions, so that the last one reuses the memory of the first."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    config = LearnerConfig()
    policy = shard(make_policy(load_causal_lm(folder / "model"), config), init_device_mesh("cpu", (ranks,)), config)
    weights = own_folder / str(rank) if own_folder else folder / "weights"
    publisher = WeightPublisher(weights, CANARY, torch.float32, rank, CPU)
    for number in range(4):
        published = publisher.publish(policy, WeightVersion(1, number))
    if published is not None:
        (folder / "checksum").write_text(published.checksum)
    assert shared_checksum(folder / "weights" / "1.2.safetensors") == weights_checksum(folder / "weights" / "1.2.safetensors")
    dist.destroy_process_group()


def test_two_real_ranks_publish_the_file_that_one_process_publishes(tmp_path):
    model_dir = tiny_model_dir(tmp_path / "model")
    start_processes(rank_main, (2, tmp_path, None), nprocs=2, start_method="fork")
    alone = make_publisher(tmp_path / "alone").publish(policy_of(load_causal_lm(model_dir)), WeightVersion(1, 3))
    assert (tmp_path / "weights" / "1.3.safetensors").read_bytes() == Path(alone.path).read_bytes()
    assert (tmp_path / "checksum").read_text() == alone.checksum


def test_ranks_that_do_not_share_the_folder_say_so(tmp_path):
    tiny_model_dir(tmp_path / "model")
    with pytest.raises(
        ProcessRaisedException, match=r"rank 1 does not see .*/1/1\.0\.unfinished, which rank 0 made: all learner"
    ):
        start_processes(rank_main, (2, tmp_path, tmp_path / "apart"), nprocs=2, start_method="fork")
