"""A run that trains on a file of questions and reports on another: what it asked is what the files hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr3.evaluation.heldout_file import read_heldout
from tasks.config import WorldConfig
from tasks.questions import Question
from tasks.reading import read_questions
from tasks.world import Universe
from tests.e2e import small_run
from trajectories.audit import audit
from trajectories.store import iterate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PHASE = (
    "{name: files, mixture: {mine: 1}, retrieval: false, reward: reasoning, learning_rate: 0.001, min_steps: 1, max_steps: 2,"
    " plateau: {probe_every: 2}}"
)


def written(path: Path, questions: list[Question]) -> Path:
    """In words that the tiny model knows, but as any file: read by its format, asked by its place."""
    path.write_text("".join(question.model_dump_json(exclude_defaults=True) + "\n" for question in questions))
    return path


def test_a_run_trains_on_files(finished: Path, tmp_path: Path) -> None:
    universe = Universe.build(WorldConfig(training_worlds=2))
    train = written(tmp_path / "train.jsonl", [universe.training_question("world/reasoning", i) for i in range(40)])
    held_out = written(tmp_path / "test.jsonl", universe.held_out["gate"].questions("world/reasoning", 40))
    folder = small_run.begin_from(finished, tmp_path / "run")
    process = small_run.start(
        folder, f"datasets.mine.train={train}", f"datasets.mine.held_out={held_out}", f"curriculum.phases=[{PHASE}]"
    )
    try:
        assert process.wait(500) == 0, small_run.output(folder)[-3000:]
    finally:
        small_run.end(process)
    known = {question.id for question in read_questions(train)}
    rows = [row for _, table in iterate(folder / "trajectories") for row in table.to_pylist()]
    assert rows and {row["source"] for row in rows} == {"mine"} and {row["question_id"] for row in rows} <= known
    assert audit(folder).violations == []
    asked = {question_id for report in read_heldout(folder) for question_id in report.correct}
    assert asked and asked <= {question.id for question in read_questions(held_out)}
