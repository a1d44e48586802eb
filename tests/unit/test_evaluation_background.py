"""Weights that a report still needs survive a learner that publishes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.config import LearnerConfig
from learner.model import make_policy
from learner.publishing import KEPT_VERSIONS, WeightPublisher
from medr3.evaluation.background import HeldWeights
from tasks.config import ColdStartConfig
from tasks.tiny_model import make_model
from trajectories.checksum import weights_checksum
from trajectories.publication import Publication
from trajectories.schema import WeightVersion


class Learner:
    """Publishes a version at a time, each of other weights, as a worker does."""

    def __init__(self, folder: Path) -> None:
        self._policy = make_policy(make_model(ColdStartConfig(hidden_size=64, heads=4, ffn_size=64), seed=0), LearnerConfig())
        self._publisher = WeightPublisher(folder, [1, 2, 3], torch.float32, 0, torch.device("cpu"))
        self._published = 0

    def publish(self) -> Publication:
        with torch.no_grad():
            for parameter in self._policy.parameters():
                parameter.add_(0.01)
        publication = self._publisher.publish(self._policy, WeightVersion(1, self._published))
        self._published += 1
        assert publication is not None
        return publication


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    return Learner(tmp_path / "weights")


def test_held_weights_stay_as_they_were_published(learner: Learner) -> None:
    first = learner.publish()
    held = HeldWeights(first)
    assert held.publication == replace(first, path=held.publication.path) != first
    for _ in range(2 * KEPT_VERSIONS):
        last = learner.publish()
    assert not Path(first.path).exists()
    assert weights_checksum(held.publication.path) == first.checksum
    assert weights_checksum(last.path) == last.checksum != first.checksum
    held.release()
    assert not Path(held.publication.path).exists()


def test_a_link_alone_would_be_overwritten(learner: Learner, tmp_path: Path) -> None:
    """Why a file is kept open: its publisher reuses the memory of what nobody reads, whatever names it has."""
    first = learner.publish()
    link = tmp_path / "weights" / "link"
    link.hardlink_to(first.path)
    for _ in range(2 * KEPT_VERSIONS):
        learner.publish()
    assert weights_checksum(link) != first.checksum


def test_released_memory_goes_back_to_the_publisher(learner: Learner, tmp_path: Path) -> None:
    held = HeldWeights(learner.publish())
    held.release()
    for _ in range(2 * KEPT_VERSIONS):
        learner.publish()
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) == KEPT_VERSIONS
    assert not list((tmp_path / "weights").glob("held/*"))


def test_what_this_machine_does_not_see_stays_where_it_is(learner: Learner) -> None:
    first = learner.publish()
    Path(first.path).unlink()
    held = HeldWeights(first)
    assert held.publication == first
    held.release()
