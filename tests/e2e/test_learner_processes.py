"""The learner as real processes: Ray Train workers on gloo, FSDP2, the exchange, and the driver's client."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from learner.batch import read_batch
from learner.checkpoint_folder import rank_files, unfinished
from learner.client import LearnerClient
from learner.config import LearnerConfig
from learner.messages import LearnerDied
from learner.model import make_policy
from learner.publishing import weights_folder
from learner.shards import weight_shards
from learner.trainer import PolicyTrainer
from tests.learner_episodes import sample_group, tiny_model, tiny_model_dir
from trajectories.checksum import weights_checksum
from trajectories.schema import WeightVersion

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SETTINGS = {"cpu_threads": 1, "microbatch_tokens": 128, "step_timeout_s": 120}
STEP = {"learning_rate": 5e-3}
STEPS = 3


def make_client(workers: int) -> LearnerClient:
    return LearnerClient(LearnerConfig(workers=workers, **SETTINGS), f"test-{uuid.uuid4().hex[:8]}", lambda: [5, 4, 3, 2, 1])


def groups_of_step(step: int) -> list:
    """Five groups of three, sampled under version 1.0: an odd number, so that two ranks never get the same work."""
    return [sample_group(tiny_model(), 10 * step + group, n=3) for group in range(5)]


async def train(client: LearnerClient, step: int, generation: int = 1):
    refs = [ray.put(table) for table in groups_of_step(step)]
    result = await client.step(refs, step, WeightVersion(generation, step + 1), **STEP)
    return result, load_file(result.publication.path)


def kill_a_worker() -> None:
    # An engine of an earlier test may still be a zombie, which has no command line.
    own = [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    workers = [process for process in own if "RayTrainWorker" in " ".join([process.name(), *process.cmdline()])]
    assert len(workers) == 2, "the killed process must be one of ours"
    os.kill(workers[1].pid, signal.SIGKILL)


def never_written(folder: Path) -> Path:
    """A checkpoint whose files are pipes that nobody reads: its writing threads never get through."""
    unfinished(folder).mkdir()
    for path in rank_files(unfinished(folder), 2):
        os.mkfifo(path)
    return folder


async def tell(folder: Path) -> SimpleNamespace:
    """Two workers train three steps, the third while a checkpoint of the second is written; a worker dies while another
    checkpoint is written; one worker resumes and is misled.
    """
    story = SimpleNamespace(model_dir=tiny_model_dir(folder / "model"), checkpoint=folder / "checkpoint")
    two = make_client(workers=2)
    try:
        story.first = load_file((await two.start(story.model_dir, WeightVersion(1, 0), None, folder / "two")).path)
        for step in range(STEPS):
            story.result, story.two_weights = await train(two, step)
            if step == 1:
                written, story.at_checkpoint = await two.checkpoint(story.checkpoint), story.two_weights
        await written
        story.checksum = weights_checksum(story.result.publication.path)
        story.never = never_written(folder / "never")
        written = await two.checkpoint(story.never)
        kill_a_worker()
        story.deaths = []
        for call in (written, train(two, 0), two.checkpoint(folder / "late")):
            with pytest.raises(LearnerDied) as died:
                await call
            story.deaths.append(str(died.value))
    finally:
        await two.stop()
    story.left_behind = weights_folder("/dev/shm", two.run_id).exists()
    one = make_client(workers=1)
    try:
        publication = await one.start(story.model_dir, WeightVersion(2, 2), story.checkpoint, folder / "one")
        story.resumed_first = load_file(publication.path)
        _, story.resumed_weights = await train(one, STEPS - 1, generation=2)
        await one.new_phase(reset_optimizer=True, refresh_reference=False)
        foreign = [ray.put(sample_group(tiny_model(seed=9), group, version=WeightVersion(2, STEPS))) for group in range(2)]
        with pytest.raises(LearnerDied) as died:
            await one.step(foreign, STEPS, WeightVersion(2, STEPS + 1), **STEP)
        story.misled = str(died.value)
    finally:
        await one.stop()
    return story


@pytest.fixture(scope="module")
def story(ray_session, tmp_path_factory):
    return asyncio.run(tell(tmp_path_factory.mktemp("learner")))


@pytest.fixture(scope="module")
def straight():
    """The same three steps in this process: one rank, no FSDP, no Ray."""
    config = LearnerConfig(**SETTINGS)
    trainer = PolicyTrainer(make_policy(tiny_model(), config), config)
    for step in range(STEPS):
        metrics = trainer.step(read_batch(groups_of_step(step)), step=step, current=WeightVersion(1, step), **STEP)
    return SimpleNamespace(metrics=metrics, weights={shard.name: shard.rows for shard in weight_shards(trainer.policy)})


def test_the_first_publication_is_the_model_as_it_was_given(story):
    given = load_file(story.model_dir / "model.safetensors")
    assert story.first.keys() == given.keys()
    assert all(torch.equal(story.first[name], given[name]) for name in given)


def test_two_sharded_workers_make_the_weights_and_metrics_that_one_process_makes(story, straight):
    assert max(float((weight - story.first[name]).abs().max()) for name, weight in straight.weights.items()) > 1e-2
    for name, weight in straight.weights.items():
        np.testing.assert_allclose(story.two_weights[name], weight, atol=1e-5, err_msg=name)
    assert story.result.publication.checksum == story.checksum
    for name, value in straight.metrics.items():
        if "second" not in name:
            assert story.result.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_checkpoint_of_two_workers_goes_on_with_one(story, straight):
    assert all(torch.equal(weight, story.at_checkpoint[name]) for name, weight in story.resumed_first.items())
    for name, weight in straight.weights.items():
        np.testing.assert_allclose(story.resumed_weights[name], weight, atol=1e-5, err_msg=name)


def test_a_checkpoint_whose_writer_died_never_gets_its_name(story):
    assert not story.never.exists() and unfinished(story.never).is_dir()
    assert not unfinished(story.checkpoint).exists()
    assert story.deaths[0].startswith("Checkpoint: ")


def test_a_killed_worker_ends_every_call_and_leaves_no_shared_memory(story):
    assert [death.partition(":")[0] for death in story.deaths] == ["Checkpoint", "Step", "Checkpoint"]
    assert not any("\n" in death for death in story.deaths)
    assert not story.left_behind


def test_an_engine_that_disagrees_with_the_learner_ends_the_run_in_one_line(story):
    assert "EngineMismatch: engine and learner differ by" in story.misled
    assert "\n" not in story.misled
