"""Spool, compaction and recorder: each row is read exactly once, whenever somebody reads and whenever somebody is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.run_folder import RunFolder, episode
from trajectories.audit import TRAJECTORIES_FOLDER, audit
from trajectories.recorder import Recorder
from trajectories.schema import STORED_SCHEMA, WeightVersion, to_table
from trajectories.spool import Spool, clear_superseded, read_spool, read_whole_spool
from trajectories.store import TrajectoryStore, iterate, read, stored_steps, with_ending

V = WeightVersion(1, 0)
FEW = 4  # steps in a large file, here


def group(name: str) -> pa.Table:
    return to_table([episode(name, index, V) for index in range(2)])


def ended(name: str, step: int) -> pa.Table:
    return with_ending(group(name), "trained", "", step, V)


def filled(folder: Path, steps: int, generation: int = 1) -> TrajectoryStore:
    store = TrajectoryStore(folder)
    for step in range(1, steps + 1):
        store.write(step, generation, [ended(f"g{step}", step)] if step % 3 else [])
    return store


def rows(folder: Path) -> list[tuple[int, int, str]]:
    return [
        (stored.generation, stored.step, name) for stored, table in iterate(folder) for name in table["episode_id"].to_pylist()
    ]


def spooled(folder: Path) -> list[str]:
    return [each.group_id for each in read_spool(folder).groups]


def test_compaction_changes_files_and_nothing_else(tmp_path: Path) -> None:
    store = filled(tmp_path, 10)
    filled(tmp_path, 3, generation=2)
    before, table, steps = rows(tmp_path), read(tmp_path), [stored[:2] for stored in stored_steps(tmp_path)]
    assert [path.name for path in store.compact(FEW)] == [
        "step-000001-000004-generation-1.parquet",
        "step-000005-000008-generation-1.parquet",
    ]
    assert rows(tmp_path) == before
    assert read(tmp_path).equals(table) and read(tmp_path).schema.equals(STORED_SCHEMA)
    assert [stored[:2] for stored in stored_steps(tmp_path)] == steps, "a step without rows is still a step"
    assert len(list(tmp_path.iterdir())) == 2 + 2 + 3
    assert not store.compact(FEW)
    with pytest.raises(FileExistsError, match="has step 2; a step is stored once per generation"):
        store.write(2, 1, [])


def test_a_compaction_does_not_open_what_earlier_ones_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after every step: if it read all large files each time, a run's cost would grow with the square of its steps."""
    store, opened = filled(tmp_path, 5 * FEW), []
    store.compact(FEW)
    filled(tmp_path, 1, generation=2)

    class Counted(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, source: Path, *arguments: object, **named: object) -> None:
            opened.append(Path(source).name)
            super().__init__(source, *arguments, **named)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    assert not store.compact(FEW)
    assert not opened


def test_a_small_file_stays_where_no_large_one_has_its_step(tmp_path: Path) -> None:
    """A step may have been left out when its neighbours were joined, for its file was large enough then."""
    store = filled(tmp_path, FEW + 1)
    left_out = tmp_path / "step-000002-generation-1.parquet"
    kept = tmp_path / "kept"
    left_out.rename(kept)
    store.compact(FEW)
    kept.rename(left_out)
    assert [stored.step for stored in stored_steps(tmp_path)] == [1, 2, 3, 4, 5]
    store.compact(FEW)
    assert left_out.exists()


def test_a_listed_step_is_read_although_it_was_compacted_meanwhile(tmp_path: Path) -> None:
    store = filled(tmp_path, FEW)
    listed = stored_steps(tmp_path)
    store.compact(FEW)
    assert [name for stored in listed for name in stored.read(["episode_id"])["episode_id"].to_pylist()] == [
        name for _, _, name in rows(tmp_path)
    ]


def test_readers_see_every_row_once_while_steps_are_compacted(tmp_path: Path) -> None:
    store, seen, done = filled(tmp_path, 2), [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(rows(tmp_path))

    watching = threading.Thread(target=watch)
    watching.start()
    for step in range(3, 24):
        store.write(step, 1, [ended(f"g{step}", step)])
        store.compact(2)
    done.set()
    watching.join()
    whole = rows(tmp_path)
    assert len(seen) > 1
    assert all(each == whole[: len(each)] for each in seen)


KILLED = """
import os, sys
from trajectories.store import TrajectoryStore
left = int(sys.argv[2])
def die(event, arguments):
    global left
    if event in ("os.rename", "os.remove"):
        left -= 1
        if not left:
            os._exit(9)
sys.addaudithook(die)
TrajectoryStore(sys.argv[1]).compact(4)
"""


@pytest.mark.parametrize("deed", [1, 2, 4])
def test_a_compaction_that_is_killed_leaves_every_row_once(tmp_path: Path, deed: int) -> None:
    """It dies before it gives the large file its name, before it removes the first small one, and between them."""
    filled(tmp_path, FEW)
    before = rows(tmp_path)
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(deed)], check=False, cwd=Path.cwd()).returncode == 9
    assert rows(tmp_path) == before
    TrajectoryStore(tmp_path).compact(FEW)
    assert rows(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001-000004-generation-1.parquet"]


def test_the_audit_is_the_same_over_compacted_files_and_a_spool(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for _ in range(9):
        run.train()
    run.checkpoint()
    Spool(tmp_path / TRAJECTORIES_FOLDER, 1).append(group(run.admit()))
    before = audit(tmp_path)
    run.store.compact(FEW)
    assert audit(tmp_path) == before
    assert before.ok and before.rows == 36


def test_a_group_is_in_the_spool_until_it_is_in_the_store(tmp_path: Path) -> None:
    spool, store = Spool(tmp_path, 1), TrajectoryStore(tmp_path)
    for name in ("g1", "g2", "g3"):
        spool.append(group(name))
    assert read_spool(tmp_path).groups[0].rows.equals(group("g1"))
    store.write(1, 1, [ended("g1", 1)])
    assert spooled(tmp_path) == ["g2", "g3"], "also before the spool has heard of it"
    spool.ended(["g1"])
    spool.append(group("g4"))
    assert len(list(tmp_path.glob("spool-*"))) == 2
    store.write(2, 1, [ended("g2", 2)])
    spool.ended(["g2", "g3"])  # g3 was given up
    assert spooled(tmp_path) == ["g4"] and len(list(tmp_path.glob("spool-*"))) == 1
    spool.ended(["g4"])
    assert not list(tmp_path.glob("spool-*"))


def test_of_two_attempts_the_last_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    spool.append(to_table([episode("g1", 0, V)]))
    spool.append(group("g1"))
    assert [each.rows.num_rows for each in read_spool(tmp_path).groups] == [2]


def test_a_later_generation_may_use_a_group_s_name_again(tmp_path: Path) -> None:
    """A resume gives out names behind its manifest once more; what the crashed process left is another group."""
    Spool(tmp_path, 1).append(group("g1"))
    Spool(tmp_path, 2).append(group("g1"))
    TrajectoryStore(tmp_path).write(1, 2, [ended("g1", 1)])
    assert [each[:2] for each in read_spool(tmp_path).groups] == [(1, "g1")]
    assert [each[:2] for each in read_whole_spool(tmp_path)] == [(1, "g1"), (2, "g1")]
    clear_superseded(tmp_path, 2)
    assert [path.name for path in tmp_path.glob("spool-*")] == ["spool-generation-2-000001.arrows"]


def test_a_note_comes_back_with_its_rows_also_after_a_crash(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    spool.append(group("g1"), b'{"made": "here"}')
    spool.append(group("g2"))
    assert [(each.group_id, each.note) for each in read_whole_spool(tmp_path)] == [("g1", b'{"made": "here"}'), ("g2", b"")]


def test_what_was_appended_is_on_the_disk_before_a_manifest_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    recorder = Recorder(tmp_path / "rows", 1)
    recorder.finished(group("g1")).result()
    monkeypatch.setattr(os, "fsync", note)
    recorder.sync()
    assert synced == ["spool-generation-1-000001.arrows", "rows"]
    recorder.sync()
    assert synced[2:] == ["rows"], "what is there already is not written again"
    recorder.close()


class Segment(NamedTuple):
    path: Path
    ends: list[int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Segment:
    """A segment of three groups, and how long it was after each."""
    folder = tmp_path_factory.mktemp("whole")
    spool, ends = Spool(folder, 1), []
    for name in ("g1", "g2", "g3"):
        spool.append(group(name))
        ends.append(next(folder.iterdir()).stat().st_size)
    spool.close()
    return Segment(next(folder.iterdir()), ends)


@given(st.data())
def test_a_torn_tail_costs_the_last_group_at_most(
    tmp_path_factory: pytest.TempPathFactory, whole: Segment, data: st.DataObject
) -> None:
    content, ends = whole.path.read_bytes(), whole.ends
    cut = data.draw(st.integers(0, len(content)))
    junk = data.draw(st.binary(max_size=64))
    folder = tmp_path_factory.mktemp("torn")
    (folder / "spool-generation-1-000001.arrows").write_bytes(content[:cut] + junk)
    found = read_spool(folder)
    kept = sum(end <= cut for end in ends)
    assert [each.group_id for each in found.groups][:kept] == ["g1", "g2", "g3"][:kept]
    if not junk and cut not in (0, *ends, len(content)):
        assert found.torn or cut > ends[-1] or cut < ends[0]


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_are_never_read_as_something_that_crashes(
    tmp_path_factory: pytest.TempPathFactory, whole: Segment, at: int, junk: bytes
) -> None:
    content = whole.path.read_bytes()
    at %= len(content)
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "spool-generation-1-000001.arrows").write_bytes(content[:at] + junk + content[at + len(junk) :])
    for each in read_spool(folder).groups:
        each.rows.to_pylist()


APPENDING = """
import sys
from trajectories.recorder import Recorder
from trajectories.schema import Episode, to_table
recorder = Recorder(sys.argv[1], generation=1)
for number in range(100000):
    name = f"g{number:06d}"
    recorder.finished(to_table([Episode("r", name, "e", "q", 0, "p", "s", "k", [], [], [], [], [], [])])).result()
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_group_that_was_acknowledged(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", APPENDING, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert process.stdout is not None
    for _ in range(20):
        acknowledged = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert spooled(tmp_path)[: acknowledged + 1] == [f"g{number:06d}" for number in range(acknowledged + 1)]


def test_a_recorder_keeps_each_group_in_one_place(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 1)
    for step in range(1, 36):
        recorder.finished(group(f"g{step}"))
        recorder.step(step, [ended(f"g{step - 1}", step)] if step > 1 else [], [f"g{step - 1}"])
    recorder.close()
    assert spooled(tmp_path) == ["g35"]
    assert Counter(name for _, _, name in rows(tmp_path)) == {f"g{n}-{i}": 1 for n in range(1, 35) for i in range(2)}
    assert sorted(path.name for path in tmp_path.iterdir() if "000001-" in path.name and path.suffix == ".parquet") == [
        "step-000001-000032-generation-1.parquet"
    ]
    assert len(list(tmp_path.iterdir())) == 1 + 3 + 1


def test_a_failure_to_write_ends_the_run_at_the_next_step(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 1)
    recorder.step(1, [], [])
    with pytest.raises(FileExistsError):
        recorder.step(1, [], []).result()
    with pytest.raises(FileExistsError):
        recorder.sync()
    with pytest.raises(FileExistsError):
        recorder.close()


def test_rows_that_were_not_stored_are_no_manifest_s_although_a_later_step_s_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, 1)
    real, go_on = recorder._store.write, threading.Event()

    def write(step: int, *rest: Any) -> Path:
        go_on.wait(10)
        if step == 1:
            raise OSError(28, "No space left on device")
        return real(step, *rest)

    monkeypatch.setattr(recorder._store, "write", write)
    recorder.step(1, [], [])
    recorder.step(2, [], [])
    go_on.set()
    with pytest.raises(OSError, match="No space"):
        recorder.sync()
