"""Whatever bytes a file holds, a reader gives questions and named rows, or refuses the file in one line; it never does anything else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.formats import FORMATS, NAMES
from tasks.questions import Question
from tasks.reading import Malformed, read
from tasks.rows import FileRefused, Shape

DATA = Path(__file__).parents[1] / "data" / "questions"
FILES = [*sorted(path for path in DATA.iterdir() if path.is_file()), DATA.parent / "mirage.json"]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["A", "yes", "0"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)
FIELDS = sorted({name for each in FORMATS for name in each.needs})


def outcome(path: Path, format_: str = "") -> None:
    refusal = ""
    try:
        for each in read(path, format_):
            assert isinstance(each, Question) or (isinstance(each, Malformed) and each.reason and "\n" not in str(each))
    except FileRefused as refused:
        refusal = str(refused)
    assert "\n" not in refusal and (not refusal or str(path) in refusal)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(
    st.binary(max_size=200), st.sampled_from(["any.jsonl", "any.json", "any.csv", "any.parquet", "any.arrow", "any.jsonl.gz"])
)
def test_any_bytes(folder: Path, content: bytes, name: str) -> None:
    (folder / name).write_bytes(content)
    outcome(folder / name)


@settings(max_examples=50)
@given(st.sampled_from(FILES), st.data())
def test_a_published_file_with_some_bytes_changed(folder: Path, file: Path, data: st.DataObject) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 20))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"}", b"[", b",", b"\\"])
        )
    path = folder / file.name
    if data.draw(st.booleans()):
        path, content = folder / f"{file.name}.gz", bytearray(gzip.compress(content))
        content[data.draw(st.integers(10, len(content) - 1))] ^= data.draw(st.integers(0, 255))
    path.write_bytes(content)
    outcome(path)


@settings(max_examples=50)
@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from([*FIELDS, "context", "cop", "label"]), VALUES, max_size=8))
def test_any_values_in_the_fields_of_a_format(folder: Path, format_: str, row: dict[str, Any]) -> None:
    shapes = frozenset().union(*(each.shapes for each in FORMATS if each.name == format_))
    row |= {name: row.get(name) for each in FORMATS if each.name == format_ for name in each.needs}
    content: Any = [row]
    if Shape.BY_SET in shapes:
        content = {"medqa": {"0": row}}
    elif Shape.LISTED in shapes:
        content = {"questions": [row]}
    elif Shape.BY_ID in shapes:
        content = {"1": row}
    path = folder / "rows.json"
    path.write_text(json.dumps(content))
    outcome(path, format_)


@settings(max_examples=50)
@given(VALUES, st.sampled_from(["", *NAMES]))
def test_any_json(folder: Path, value: Any, format_: str) -> None:
    path = folder / "value.json"
    path.write_text(json.dumps(value))
    outcome(path, format_)


@given(st.lists(VALUES, max_size=6), st.integers(1, 40))
def test_a_large_array_is_taken_apart_as_a_parser_would(folder: Path, rows: list[Any], chunk: int) -> None:
    """Rows that are objects come back whole, wherever the file is cut into pieces for reading."""
    import io

    from tasks.rows import json_splitting

    before, json_splitting.CHUNK = json_splitting.CHUNK, chunk
    try:
        found = list(json_splitting.elements(io.BytesIO(json.dumps(rows, indent=1).encode()), 1))
    finally:
        json_splitting.CHUNK = before
    whole = [row for row in rows if isinstance(row, (dict, list))]
    assert [row.fields for row in found if not row.refused] == whole
    assert bool([row for row in found if row.refused]) == (len(whole) < len(rows))


@pytest.mark.parametrize(
    "row",
    ['{"a": {"b": {}}}', '{"a": [{"b": 1}, {"b": 2}]}', '{"a": "}, {"}', '{"a": {"b": [{}]}, "c": "\\\\"}', '{"a": 1}, 7'],
)
def test_rows_of_any_shape_are_found_at_once_or_by_their_brackets(folder: Path, row: str) -> None:
    """Looking ahead for the end of a row gives the same rows as following its brackets, in time that grows with the file alone."""
    import io

    from tasks.rows.json_splitting import elements

    count = 5_000
    content = ("[" + ",\n".join([row] * count) + "]").encode()
    whole = json.loads(f"[{row}]")[0]
    found = list(elements(io.BytesIO(content), 1))
    assert [each.fields for each in found if not each.refused] == [whole] * count
    assert [each.number for each in found if not each.refused][-1] == count


HOSTILE = {
    "spaces.jsonl": '{"id": "a", "question": "' + " " * 200_000 + 'x", "options": {"A": "b"}, "label": "A"}',
    "deep.jsonl": '{"question": "?", "options": '
    + '{"A": ' * 1_000
    + "1"
    + "}" * 1_000
    + ', "answer_idx": "A", "answer_idx": "A"}',
    "huge.jsonl": '{"Patient Note": "a", "Question": "b", "Ground Truth Answer": 1' + "0" * 400 + ', "x": NaN}',
    "quotes.json": "[" + '{"a": "\\\\' * 50_000,
    "names.json": '[{"Ope\\nn": 1, "\\u001b[2J": 2}]',
    "lines.csv": "Question,Ground Truth Answer,Patient Note\n" + "\n" * 20_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(60)
def test_what_is_hostile_is_read_or_refused_in_time(folder: Path, name: str) -> None:
    (folder / name).write_text(HOSTILE[name])
    outcome(folder / name)
