"""Files of questions: what is read comes back as it was, and what is no question is said with its place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from medr3.config import WorldConfig
from tasks.questions import Question
from tasks.reading import Dataset, Malformed, read, read_questions
from tasks.rows import LONGEST_ROW, FileRefused
from tasks.world import SOURCES, World

DATA = Path(__file__).parents[1] / "data"
MIRAGE = DATA / "mirage.json"
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
        ("[1]", "line 2: must be an object, not list"),
        (json.dumps(GOOD), "line 2: id 'q1' stands in questions.jsonl, line 1 already"),
        (json.dumps(GOOD | {"id": "q2", "golden": 1}), "line 2: golden: Extra inputs are not permitted"),
        (json.dumps(GOOD | {"id": "q2", "kind": "choice"}), "line 2: question q2: gold 'fever' is not among the options []"),
        (json.dumps({"id": "q2"}), "line 2: text: Field required (and 2 more)"),
        ("[" * 100_000, "line 2: is nested too deep for a question"),
        ('{"id": "q2", "gold": "a", "gold": "b", "text": "?", "kind": "text"}', "line 2: names gold twice"),
        ('{"id": "\\ud800", "gold": "a", "text": "?", "kind": "text"}', "line 2: holds half a character"),
        ('{"id": ' + "9" * 5000 + "}", "line 2: is no JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path: Path, second: str, reason: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + second + "\n")
    with pytest.raises(FileRefused) as refused:
        list(read_questions(path))
    assert str(refused.value).startswith(f"{path}, {reason}")
    assert "\n" not in str(refused.value)


def test_good_rows_are_kept_around_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{\n{"id": "\xff"}\n' + json.dumps(GOOD).encode() + b"\n\n" + json.dumps(GOOD | {"id": "q2"}).encode())
    found = list(read(path))
    assert [each.id for each in found if isinstance(each, Question)] == ["q1", "q2"]
    assert [each.place for each in found if isinstance(each, Malformed)] == ["line 1", "line 2", "line 4"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jsonl", b"", "is empty: write one question per line"),
        ("empty.json", b"[ ]", "is empty"),
        ("binary.jsonl", b'{"id": "\xff"}\n', "line 1: is no UTF-8 at byte 9"),
        (
            "other.jsonl",
            b'{"a": 1, "b": 2}\n',
            "of no known format .JSON lines; its first row has the fields a, b.: name one of medr3",
        ),
        ("other.csv", b"a,b\n1,2\n", "of no known format .CSV; its first row has the fields a, b"),
        ("train.csv.zip", b"PK\x03\x04rest", "is a ZIP archive: unpack it first"),
        ("train.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        ("train.json", "[{}]".encode("utf-16"), "is UTF-16: convert it"),
        ("train.parquet", b"PAR1 and no more PAR1", "cannot be read as a table"),
        ("train.arrow", b"no arrow", "cannot be read as a table"),
        ("train.json", b"PAR1 and no more PAR1", "is Parquet: let its name end with .parquet"),
        ("twice.csv", b"Question,Question\n1,2\n", "the header names a column twice"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileRefused, match=reason) as refused:
        list(read_questions(path))
    assert "\n" not in str(refused.value)


def test_what_is_not_there_and_what_is_a_folder(tmp_path: Path) -> None:
    for dataset, reason in (
        (Dataset(tmp_path / "gone"), "No such file"),
        (Dataset(tmp_path), "holds no file of rows"),
        (Dataset(MIRAGE, "mirage", "train"), "is one file: leave @train out"),
        (Dataset(MIRAGE, "medqa"), "is JSON by set, but medqa is"),
    ):
        with pytest.raises(FileRefused, match=reason):
            list(dataset.read_strictly())


@pytest.mark.parametrize("left", [12, 30, 200, 2_000])
def test_of_a_truncated_archive_the_whole_rows_are_kept(tmp_path: Path, left: int) -> None:
    rows = b"".join(json.dumps(GOOD | {"id": f"q{i}", "text": f"{i * 7919 % 10_007}"}).encode() + b"\n" for i in range(500))
    packed = gzip.compress(rows)
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(packed)
    assert len(list(read_questions(path))) == 500
    path.write_bytes(packed[:left])
    if left < 100:  # nothing of the first row
        with pytest.raises(FileRefused, match=r"archive (ends early|is broken)"):
            list(read_questions(path))
        return
    *good, last = read(path)
    assert isinstance(last, Malformed) and "archive ends early" in last.reason
    assert all(isinstance(each, Question) for each in good) and (left < 2_000 or good)


def test_an_archive_that_unpacks_beyond_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.rows.opening.FREE_EXPANSION", 1 << 16)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() + b"\n" + b" " * (8 << 20)))
    with pytest.raises(FileRefused, match="unpacks to more than 200 times its size"):
        list(read_questions(path))


def test_a_line_beyond_all_measure_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n")
        file.write(b'"' + b"x" * (LONGEST_ROW + 5) + b'"\n')
        file.write(json.dumps(GOOD | {"id": "q2"}).encode() + b"\n")
    first, second, third = read(path)
    assert isinstance(first, Question) and isinstance(third, Question)
    assert isinstance(second, Malformed) and second.reason == "is longer than 16 MiB" and len(second.row) == 1000


@pytest.mark.parametrize("name", ["long.jsonl", "long.json", "long.jsonl.gz"])
def test_a_long_file_is_never_in_memory_whole(tmp_path: Path, name: str) -> None:
    rows = [json.dumps(GOOD | {"id": f"q{number}", "text": "x" * 20_000}) for number in range(1_000)]
    text = "[\n" + ",\n".join(rows) + "\n]" if name == "long.json" else "\n".join(rows)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode(), 1) if name.endswith(".gz") else text.encode())
    size, text, rows = len(text), "", []
    tracemalloc.start()
    read_ = sum(1 for _ in read_questions(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read_ == 1_000 and peak < size / 3


def test_mirage_is_read_by_set() -> None:
    questions = {question.id: question for question in read_questions(MIRAGE)}
    sources = [question.source.removeprefix("mirage/") for question in questions.values()]
    assert sorted(sources) == ["bioasq", "medmcqa", "medqa", "medqa", "mmlu", "mmlu", "pubmedqa"]
    assert sorted(question.specialty for question in questions.values() if question.specialty) == [
        "anatomy",
        "clinical_knowledge",
    ]
    assert questions["mirage/medqa/0000"].gold == "C"
    (pubmedqa,) = (question for question in questions.values() if question.source == "mirage/pubmedqa")
    assert pubmedqa.options == {"A": "yes", "B": "no", "C": "maybe"} and not pubmedqa.context


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"medqa": {"0": {"question": "?", "options": {"A": "x"}, "answer": "B"}}},
            "(medqa/0): gold 'B' is not one of the letters A",
        ),
        ({"medqa": {"0": {"question": "?", "options": {"A": "x"}}}}, "(medqa/0): has no answer"),
        (
            {"medqa": {"0": {"question": "?", "options": ["x"], "answer": "A"}}},
            "(medqa/0): gold 'A' is not one of the letters x",
        ),
        (
            {"medqa": {"0": {"question": "?", "options": {"A": "x"}, "answer": "A"}, "1": "?"}},
            "(medqa/1): is a text, not an object",
        ),
        ({"medqa": {"0": "?"}}, "is JSON by id, but mirage is JSON by set"),
        ({"medqa": []}, "is JSON lines, but mirage is JSON by set"),
        (
            {"hotpotqa": {"0": {"question": "?", "options": {"A": "x"}, "answer": "A"}}},
            "stands in hotpotqa/0, but MIRAGE's sets are mmlu",
        ),
        ({}, "is JSON lines, but mirage is JSON by set"),
        ([], "is empty"),
    ],
)
def test_what_is_not_mirage_is_refused_by_its_place(tmp_path: Path, change: Any, reason: str) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(change))
    with pytest.raises(FileRefused) as refused:
        list(read_questions(path, "mirage"))
    assert reason in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize(("name", "piece"), [("a.json", b"1"), ("a.json", b'"'), ("a.json", b'{"a": "'), ("a.jsonl", b"{\n")])
def test_a_file_without_rows_does_not_fill_the_memory(tmp_path: Path, name: str, piece: bytes) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write((b"[" if name == "a.json" else b"") + piece)
        for _ in range(24):
            file.write((piece if name == "a.jsonl" else b"x") * (1 << 20))
    tracemalloc.start()
    with pytest.raises(FileRefused, match=r"longer than 16 MiB: the rest|nor can any of the 1,000 rows"):
        list(read_questions(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * LONGEST_ROW


def test_files_of_a_folder_share_their_ids(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(FileRefused, match=r"b\.jsonl, line 1: id 'q1' stands in a\.jsonl, line 1 already"):
        list(Dataset(tmp_path).read_strictly())
