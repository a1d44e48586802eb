"""A checkpoint's hash is that of the state it was written with, and of the state that is loaded from it: weights, moments, random state."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from learner.batch import read_batch
from learner.checkpoint import CheckpointWriter, held_state, load_training_state
from learner.checkpoint_folder import STATE, complete
from learner.config import LearnerConfig
from learner.loading import load_sharded
from learner.model import make_policy
from learner.trainer import PolicyTrainer
from medr3.chaos.state import loaded_state, saved_state
from tests.learner_episodes import sample_group, tiny_model, tiny_model_dir
from trajectories.events import Event, EventKind
from trajectories.schema import WeightVersion


def make_trainer(model_dir: Path) -> PolicyTrainer:
    config = LearnerConfig()
    return PolicyTrainer(load_sharded(model_dir, lambda causal_lm: make_policy(causal_lm, config), torch.device("cpu")), config)


def test_a_resume_holds_what_the_checkpoint_held(tmp_path: Path) -> None:
    model_dir = tiny_model_dir(tmp_path / "model")
    trainer, folder = make_trainer(model_dir), tmp_path / "run" / "checkpoints" / "step-000001-generation-1"
    batch = read_batch([sample_group(tiny_model(), group) for group in range(3)])
    trainer.step(batch, step=0, current=WeightVersion(1, 0), learning_rate=1e-2)
    torch.manual_seed(1234)
    held = held_state(trainer)
    writer = CheckpointWriter(lambda *report: None)
    writer.start(trainer, folder)
    with torch.no_grad():
        next(trainer.policy.parameters()).add_(1.0)  # the copy is written and hashed, not what is trained meanwhile
    writer.wait()
    complete(folder, ranks=1)
    (tmp_path / "run" / "manifest.json").write_text(
        json.dumps({"step": 1, "checkpoints": [{"folder": f"checkpoints/{folder.name}"}]})
    )
    assert saved_state(tmp_path / "run") == (1, held)
    assert json.loads((folder / STATE).read_text())["hash"] == held != held_state(trainer)

    resumed = make_trainer(model_dir)
    load_training_state(resumed, folder)
    assert held_state(resumed) == held
    _, optimizer = resumed.trained["policy"]
    moments = next(iter(optimizer.state.values()))["exp_avg_sq"]
    moments.view(-1)[0] += 1e-6
    assert held_state(resumed) != held
    moments.view(-1)[0] -= 1e-6
    load_training_state(resumed, folder)
    torch.rand(1)
    assert held_state(resumed) != held, "the random state is part of it"


def test_what_was_loaded_is_told_with_the_first_publication() -> None:
    events = [
        Event(EventKind.PUBLISHED, 1.0, {"version": "1.0", "step": 0, "checksum": "a"}),
        Event(EventKind.PUBLISHED, 5.0, {"version": "2.3", "step": 3, "checksum": "b", "state": "ab12"}),
        Event(EventKind.PUBLISHED, 6.0, {"version": "2.4", "step": 4, "checksum": "c"}),
    ]
    assert loaded_state(events, began=2.0) == "ab12"
    assert loaded_state(events, began=5.5) == ""


def test_a_run_without_a_manifest_has_no_state_to_load(tmp_path: Path) -> None:
    assert saved_state(tmp_path) == (None, "")
