"""Data sets of a run: trained on and held out apart, asked in an order that the seed decides, and found again by id."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medr3.config import RunConfig, load
from medr3.datasets import open_tasks, tasks_of
from medr3.errors import UserError
from medr3.phase_questions import held_out_questions
from medr3.run.sampler import QuestionSampler
from tasks.library import QuestionStore, Tasks
from tasks.questions import LengthInstruction, Question
from tasks.world import Universe

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
MODEL = "model.path=/no/such/model"  # its words are nobody's business here


def written(path: Path, numbers: range, **more: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"Number {i}?", "options": {"A": f"yes {i}", "B": "no"}, "answer_idx": "AB"[i % 2], **more}
        for i in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def configured(folder: Path, train: str, held_out: str, *more: str) -> RunConfig:
    return load(DEMO, [
        f"run.folder={folder / 'run'}", f"datasets.mine.train={train}", f"datasets.mine.held_out={held_out}",
        "curriculum.phases.0.mixture={mine: 1, world/reasoning: 1}", *more,
    ])  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path) -> tuple[RunConfig, Universe]:
    config = configured(
        tmp_path,
        written(tmp_path / "a" / "train.jsonl", range(50)),
        written(tmp_path / "b" / "test.jsonl", range(40, 60)),
        MODEL,
    )
    return config, open_tasks(config)


def test_what_is_held_out_is_never_trained_on(opened: tuple[RunConfig, Universe], capsys: pytest.CaptureFixture[str]) -> None:
    config, tasks = opened
    assert isinstance(tasks, Tasks)
    train = [tasks.training_question("mine", i) for i in range(40)]
    assert sorted(question.text for question in train) == sorted(f"Number {i}?" for i in range(40))
    phase = config.curriculum.phases[0]
    probe, test = (held_out_questions(tasks.asked(purpose), phase, 100) for purpose in ("probe", "test"))
    asked = [{question.text for question in part if question.source == "mine"} for part in (probe, test)]
    assert len(asked[0]) == len(asked[1]) == 10 and asked[0] | asked[1] == {f"Number {i}?" for i in range(40, 60)}
    assert Counter(question.source for question in probe) == {"mine": 10, "world/reasoning": 50}, "half each, as far as they go"


def test_every_epoch_has_an_order_of_its_own_and_a_seed_repeats_it(opened: tuple[RunConfig, Universe]) -> None:
    _, tasks = opened
    first, second = ([tasks.training_question("mine", e * 40 + i).id for i in range(40)] for e in range(2))
    assert sorted(first) == sorted(second) and first != second
    again = pickle.loads(pickle.dumps(tasks))
    assert [again.training_question("mine", i).id for i in range(40)] == first


def test_the_sampler_asks_data_sets_and_worlds_in_turn_and_finds_them_again(opened: tuple[RunConfig, Universe]) -> None:
    config, tasks = opened
    sampler = QuestionSampler(tasks, seed=1)
    drawn = [sampler.next(config.curriculum.phases, 0) for _ in range(30)]
    assert Counter(question.source for question in drawn) == {"mine": 15, "world/reasoning": 15}
    assert all(tasks.question(question.id) == question for question in drawn)
    long = drawn[0].thinking_for(LengthInstruction(mode="exact", tokens=7))
    assert tasks.question(long.id) == long


def test_the_run_keeps_its_own_copy(tmp_path: Path, opened: tuple[RunConfig, Universe]) -> None:
    config, tasks = opened
    (tmp_path / "a" / "train.jsonl").unlink()
    asked = tasks.training_question("mine", 3)
    assert open_tasks(config).training_question("mine", 3) == asked == tasks_of(tmp_path / "run", config).question(asked.id)


def test_without_data_sets_nothing_changes() -> None:
    config = load(DEMO, [])
    assert type(open_tasks(config)) is Universe
    assert config.hash() == load(DEMO, ["datasets={}"]).hash() != load(DEMO, ["datasets={a: {train: x, held_out: y}}"]).hash()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("datasets.mine.train=gone.jsonl",), r"datasets.mine.train: gone.jsonl: No such file"),
        (("datasets.mine.train=BAD",), r"1 rows are malformed, and allow_bad is 0; the first: .*bad.jsonl, line 51: is no JSON"),
        (("datasets.mine.held_out=ONE",), r"has 50 questions to train on and 1 held out"),
        (("curriculum.phases.0.kinds={number: 1}",), "asks mine for kinds and specialties that datasets.mine.train does not have"),
        (("model.path=null",), r"says 'Number', which the tiny model does not know: set model.path"),
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_used_is_one_line(tmp_path: Path, more: tuple[str, ...], reason: str) -> None:
    train, held_out = written(tmp_path / "train.jsonl", range(50)), written(tmp_path / "test.jsonl", range(50, 60))
    bad, one = tmp_path / "bad.jsonl", written(tmp_path / "one.jsonl", range(60, 61))
    bad.write_text(Path(train).read_text() + "{\n")
    overrides = [each.replace("BAD", str(bad)).replace("ONE", one) for each in more]
    config = configured(tmp_path, train, held_out, MODEL, *overrides)
    with pytest.raises(UserError, match=reason) as refused:
        open_tasks(config)
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "run").glob("questions/*.train.jsonl")) or "malformed" not in reason


def test_what_is_malformed_may_be_left_out_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, held_out = tmp_path / "train.jsonl", written(tmp_path / "test.jsonl", range(50, 60))
    train.write_text(Path(written(tmp_path / "good.jsonl", range(20))).read_text() + "{\n")
    config = configured(tmp_path, str(train), held_out, MODEL, "datasets.mine.allow_bad=1")
    tasks = open_tasks(config)
    assert isinstance(tasks, Tasks) and len(tasks.sets["mine"].train) == 20
    assert "datasets.mine.train: 1 malformed rows and 0 without a question are left out" in capsys.readouterr().out
    assert (tmp_path / "run" / "questions" / "mine.train.quarantine.jsonl").read_text().count("\n") == 1


def test_a_configuration_says_where_the_literature_is() -> None:
    with pytest.raises(
        ValidationError, match=r"looks up for mine what only the world's literature answers: set retrieval\.index"
    ):
        load(DEMO, ["datasets={mine: {train: a, held_out: b}}", "curriculum.phases.1.mixture={mine: 1}"])
    with pytest.raises(ValidationError, match="mixes unknown task source 'mein': did you mean mine"):
        load(DEMO, ["datasets={mine: {train: a, held_out: b}}", "curriculum.phases.0.mixture={mein: 1}"])


def test_a_store_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def questions() -> Any:
        yield Question(id="q", text="?", kind="text", gold="x")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        QuestionStore.build(tmp_path / "q.jsonl", questions())
    assert not list(tmp_path.iterdir())
