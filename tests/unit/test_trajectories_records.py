"""Events and rows: written, cut off by a crash, read again; and the fast form of the row rules against the slow one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.run_folder import episode
from trajectories.event_fields import TYPES
from trajectories.events import REQUIRED_FIELDS, EventKind, EventLog, read_events
from trajectories.rules import broken_rows
from trajectories.schema import EPISODE_SCHEMA, STORED_SCHEMA, Episode, Segment, VersionSpan, WeightVersion, check, to_table
from trajectories.store import TrajectoryStore, read, stored_steps, with_ending

V = WeightVersion(1, 0)


FITTING = {"integer": 1, "number": 0.5, "text": "a", "version": "1.2", "true or false": True}


def test_every_kind_has_its_fields_and_is_read_back(tmp_path: Path) -> None:
    assert REQUIRED_FIELDS.keys() == set(EventKind)
    with EventLog(tmp_path / "events.jsonl") as log:
        for kind, names in REQUIRED_FIELDS.items():
            log.append(kind, **{name: FITTING[TYPES.get(name, "integer")] for name in names}, note="ä\nb")
    events, truncated = read_events(log.path)
    assert [event.kind for event in events] == list(REQUIRED_FIELDS)
    assert all(event["note"] == "ä\nb" for event in events)
    assert not truncated


def test_each_event_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for n in range(1, 4):
        log.append(EventKind.CHECKPOINT, step=n)
        assert len(read_events(log.path).events) == log.position == n
    log.close()


@pytest.mark.parametrize(
    ("fields", "words"), [({}, "missing step"), ({"step": 1, "time": 2}, "own clock"), ({"step": float("nan")}, "JSON")]
)
def test_an_unusable_event_is_refused_and_nothing_written(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    with EventLog(tmp_path / "events.jsonl") as log, pytest.raises(ValueError, match=words):
        log.append(EventKind.CHECKPOINT, **fields)
    assert log.path.read_bytes() == b""


@settings(deadline=None)
@given(cut=st.integers(1, 200))
def test_a_cut_anywhere_loses_at_most_the_last_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    with EventLog(path) as log:
        for step in range(5):
            log.append(EventKind.CHECKPOINT, step=step)
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    events, truncated = read_events(path)
    assert [event["step"] for event in events] == list(range(len(events)))
    assert len(events) == path.read_bytes().count(b"\n")
    assert truncated == (path.read_bytes()[-1:] not in (b"", b"\n"))
    with EventLog(path) as log:
        assert log.position == len(events)
        log.append(EventKind.CHECKPOINT, step=99)
    assert [event["step"] for event in read_events(path).events] == [*range(len(events)), 99]


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"kind": "nothing", "time": 0}', '{"kind": "checkpoint", "time": 0}', '{"kind": "probe"}']
)
def test_damage_in_the_middle_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    good = json.dumps({"kind": "checkpoint", "time": 0, "step": 1})
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"events\.jsonl:2"):
        read_events(path)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path / "trajectories")
    groups = [with_ending(to_table([episode(name, 0, V)]), "trained", "", 3, V) for name in ("g0", "g1")]
    path = store.write(step=3, generation=1, groups=groups)
    store.write(step=4, generation=1, groups=[])
    table = read(store.folder)
    assert table.schema.equals(STORED_SCHEMA)
    assert table.to_pylist() == pa.concat_tables(groups).to_pylist()
    assert [(stored.step, stored.generation) for stored in stored_steps(store.folder)] == [(3, 1), (4, 1)]
    assert sorted(file.suffix for file in store.folder.iterdir()) == [".parquet", ".parquet"], (
        f"nothing unfinished beside {path}"
    )


def test_a_step_is_stored_once_per_generation(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(1, 1, [])
    store.write(1, 2, [])
    with pytest.raises(FileExistsError, match="once per generation"):
        store.write(1, 1, [])


def test_a_crash_while_writing_leaves_no_step_and_the_next_writer_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "step-000001-generation-1.unfinished").write_bytes(b"PAR1 half a file")
    assert read(tmp_path).num_rows == 0
    TrajectoryStore(tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_of_another_schema_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of EPISODE_SCHEMA"):
        with_ending(pa.table({"group_id": ["g"]}), "trained", "", 0, V)


def spans(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def almost_good_rows(draw: st.DrawFn) -> Episode:
    """A sound row with any of its columns replaced by noise of about the right shape."""
    row = episode("g", 0, V)
    numbers = st.integers(-1, 9)
    if draw(st.booleans()):
        row = replace(row, token_ids=list(range(draw(st.sampled_from([0, 7, 8, 9])))))
    if draw(st.booleans()):
        row = replace(row, loss_mask=draw(st.lists(st.booleans(), min_size=7, max_size=9)))
    if draw(st.booleans()):
        row = replace(row, logprobs=draw(st.lists(st.sampled_from([0.0, -0.0, -1.0]), min_size=7, max_size=9)))
    if draw(st.booleans()):
        sources = st.sampled_from(["prompt", "model", "document"])
        ends = draw(st.lists(numbers, max_size=4))
        starts = [0, *ends] if draw(st.booleans()) else draw(st.lists(numbers, min_size=len(ends), max_size=len(ends)))
        row = replace(row, segments=[Segment(draw(sources), start, end, 0) for start, end in zip(starts, ends, strict=False)])
    if draw(st.booleans()):
        row = replace(row, versions=[VersionSpan(1, 0, *span) for span in draw(st.lists(spans(0, 9), max_size=4))])
    return row


def shifted(row: Episode, column: str, index: int, edge: str, by: int) -> Episode:
    """The row with one edge of one of its spans moved."""
    spans = list(getattr(row, column))
    spans[index] = replace(spans[index], **{edge: getattr(spans[index], edge) + by})
    return replace(row, **{column: spans})


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("edge", ["start", "end"])
@pytest.mark.parametrize(("column", "index"), [*(("segments", i) for i in range(4)), ("versions", 0), ("versions", 1)])
def test_every_edge_that_is_off_by_one_is_found(column: str, index: int, edge: str, by: int) -> None:
    good = episode("g", 0, V)
    table = to_table([good, shifted(good, column, index, edge, by), good])
    assert list(broken_rows(table)) == [1]
    assert broken_rows(table)[1] == check(table.to_pylist()[1])


@settings(deadline=None)
@given(st.lists(almost_good_rows(), max_size=5))
def test_the_fast_rules_agree_with_the_slow_ones(rows: list[Episode]) -> None:
    table = to_table(rows)
    slow = {number: wrong for number, row in enumerate(table.to_pylist()) if (wrong := check(row))}
    assert broken_rows(table) == slow
    halves = pa.concat_tables([table.slice(0, 2), table.slice(2)])  # several chunks, with offsets of their own
    assert broken_rows(halves) == slow


def test_a_null_column_is_a_broken_row() -> None:
    rows = to_table([episode("g", 0, V)]).to_pylist()
    rows[0]["segments"] = None
    assert "nulls" in broken_rows(pa.Table.from_pylist(rows, schema=EPISODE_SCHEMA))[0][0]
