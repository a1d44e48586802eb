"""Files of questions: what is read comes back as it was, and what is no question is refused with its place."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr3.config import WorldConfig
from tasks.mirage import read_mirage
from tasks.questions import Question
from tasks.reading import QuestionsRefused, read_questions
from tasks.world import SOURCES, World

MIRAGE = Path(__file__).parents[1] / "data" / "mirage.json"
GOOD = {"id": "q1", "text": "?", "kind": "text", "gold": "fever"}


def test_questions_come_back_as_they_were_written(tmp_path: Path) -> None:
    world = World("test", WorldConfig(), held_out=True)
    questions = [world.question(source, index) for source in SOURCES for index in range(20)]
    path = tmp_path / "world.jsonl"
    path.write_text("".join(question.model_dump_json() + "\n" for question in questions))
    assert list(read_questions(path)) == questions


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("{", "line 2: is no JSON: Expecting property name enclosed in double quotes at character"),
        ("", "line 2: is empty: remove it"),
        ("[1]", "line 2: Input should be a valid dictionary"),
        (json.dumps(GOOD), "line 2: id 'q1' stands in line 1 already"),
        (json.dumps(GOOD | {"id": "q2", "golden": 1}), "line 2: golden: Extra inputs are not permitted"),
        (json.dumps(GOOD | {"id": "q2", "kind": "choice"}), "line 2: question q2: gold 'fever' is not among the options []"),
        (json.dumps({"id": "q2"}), "line 2: text: Field required (and 2 more)"),
        ("[" * 100_000, "line 2: is nested too deep for a question"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path: Path, second: str, reason: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + second + "\n")
    with pytest.raises(QuestionsRefused) as refused:
        list(read_questions(path))
    assert str(refused.value).startswith(f"{path}, {reason}")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.touch()
    binary.write_bytes(b'{"id": "\xff"}\n')
    for path, reason in ((empty, "is empty"), (binary, "line 1: is no UTF-8 at byte 9"), (tmp_path / "gone", "No such file")):
        with pytest.raises(QuestionsRefused, match=reason):
            list(read_questions(path))


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else_than_read_or_refuse(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    refusal = ""
    try:
        assert all(isinstance(question, Question) for question in read_questions(path))
    except QuestionsRefused as refused:
        refusal = str(refused)
    assert not refusal or str(path) in refusal


def test_a_long_file_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    text = "x" * 20_000
    with path.open("w") as file:
        for number in range(1_000):
            file.write(json.dumps(GOOD | {"id": f"q{number}", "text": text}) + "\n")
    tracemalloc.start()
    read = sum(1 for _ in read_questions(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == 1_000 and peak < path.stat().st_size / 10


def test_mirage_is_read_by_set(tmp_path: Path) -> None:
    questions = list(read_mirage(MIRAGE))
    assert [question.source.removeprefix("mirage/") for question in questions] == [
        "mmlu", "mmlu", "medqa", "medqa", "medmcqa", "pubmedqa", "bioasq",
    ]  # fmt: skip
    assert [question.specialty for question in questions[:3]] == ["anatomy", "clinical_knowledge", ""]
    assert questions[2].id == "mirage/medqa/0000" and questions[2].gold == "C"
    assert questions[5].options == {"A": "yes", "B": "no", "C": "maybe"}
    assert all(not question.context for question in questions)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"medqa": {"0": {"question": "?", "options": {"A": "x"}, "answer": "B"}}},
            "medqa/0: question mirage/medqa/0: gold 'B'",
        ),
        ({"medqa": {"0": {"question": "?", "options": {"A": "x"}}}}, "medqa/0: has no answer"),
        ({"medqa": {"0": {"question": "?", "options": ["x"], "answer": "A"}}}, "medqa/0: options: Input should be"),
        ({"medqa": {"0": "?"}}, "medqa/0: must be an object, not str"),
        ({"medqa": {}}, "medqa must hold questions"),
        ({"medqa": []}, "medqa must hold questions"),
        ({"hotpotqa": {}}, "has a set 'hotpotqa', but MIRAGE's are mmlu"),
        ({}, "holds no set"),
        ([], "must hold MIRAGE's sets by name, not list"),
    ],
)
def test_what_is_not_mirage_is_refused_by_its_place(tmp_path: Path, change: Any, reason: str) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(change))
    with pytest.raises(QuestionsRefused) as refused:
        list(read_mirage(path))
    assert reason in str(refused.value) and str(path) in str(refused.value)
    path.write_text("{\n,")
    with pytest.raises(QuestionsRefused, match="line 2: is no JSON"):
        list(read_mirage(path))
