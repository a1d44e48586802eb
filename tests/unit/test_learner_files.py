"""The learner's input: Arrow rows as flat arrays; and the moments of its optimiser."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from learner.batch import read_batch
from learner.config import LearnerConfig
from learner.model import make_policy
from learner.trainer import PolicyTrainer
from tests.learner_episodes import FIRST, sample_group, tiny_model
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
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_by_name(change, message):
    table = sample_group(tiny_model(), 0)
    rows = table.to_pylist()
    for name, value in change.items():
        rows[1][name] = value(rows[1])
    with pytest.raises(ValueError, match=message):
        read_batch([pa.Table.from_pylist(rows, schema=table.schema)])


def test_reset_optimizer_forgets_the_moments():
    config = LearnerConfig()
    trainer = PolicyTrainer(make_policy(tiny_model(), config), config)
    trainer.step(read_batch([sample_group(tiny_model(), 0)]), step=0, current=FIRST, learning_rate=1e-3)

    def moments():
        return [state for _, optimizer in trainer.trained.values() for state in optimizer.state.values()]

    assert any(state["exp_avg"].any() for state in moments())
    trainer.reset_optimizer()
    assert moments() and not any(state["exp_avg"].any() or state["step"] for state in moments())
