"""The second place of a run: a real S3 server and the local disk, broken streams, killed senders, and a resume from there alone."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medr3.errors import UserError
from medr3.run.manifest import MANIFEST, Manifest, open_manifest
from medr3.run.mirroring import Mirroring, state_of, use_mirror
from medr3.run.resuming import resume
from medr3.run.train import _open_folder
from medr3.storage import ATTEMPTS, INVENTORY, Inventory, Mirror, State, StorageFailed, Stored
from tests.resumable import configuration, trained_for
from tests.run_folder import episode
from tests.s3_server import BUCKET, s3_server
from trajectories.schema import WeightVersion, to_table
from trajectories.spool import Spool, read_whole_spool
from trajectories.store import TrajectoryStore, read, with_ending


def no_wait(seconds: float) -> None:
    pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as where:
        yield where


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return (tmp_path / "there").as_uri()
    return f"s3://{BUCKET}/{tmp_path.name}?{request.getfixturevalue('server')}"


def run_of(folder: Path, steps: int = 3, *overrides: str) -> Manifest:
    """A run with everything that a resume and an audit need: checkpoints, rows, a spool, a cold start, an index."""
    _, manifest = trained_for(folder, steps, *overrides, left_open=1)
    for path in ("cold_start/model.safetensors", "index/vectors/part.bin", "metrics.jsonl"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode() * 100)
    rows = to_table([episode("g0000001", index, WeightVersion(1, 0)) for index in range(2)])
    TrajectoryStore(folder / "trajectories").write(1, 1, [with_ending(rows, "trained", "", 1, WeightVersion(1, 0))])
    spool = Spool(folder / "trajectories", 1)
    spool.append(rows, b"note")
    spool.close()
    (folder / "ray_train").mkdir()
    (folder / "ray_train" / "logs.txt").write_text("nobody needs this")
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_on_from_its_second_place_alone(tmp_path: Path, url: str) -> None:
    here, empty = tmp_path / "here", tmp_path / "empty"
    manifest = run_of(here, 3, "run.keep_checkpoints=9")
    Mirror(url, no_wait).send(here, state_of(manifest))
    before = contents(here)
    shutil.rmtree(here)
    config = configuration(empty, f"run.mirror={url}", "run.keep_checkpoints=9")
    found = _open_folder(config, "auto", "", None)
    assert found == manifest == open_manifest(empty)
    assert contents(empty) | {"config.json": b""} == {
        name: held for name, held in before.items() if "ray_train" not in name
    } | {"config.json": b""}
    assert read_whole_spool(empty / "trajectories")[0].note == b"note" and read(empty / "trajectories").num_rows == 2


def test_only_what_is_new_is_sent_and_what_no_one_names_goes(tmp_path: Path, url: str) -> None:
    here = tmp_path / "here"
    config, first = trained_for(here, 2)
    mirror = Mirror(url, no_wait)
    mirror.send(here, state_of(first))
    sent: list[str] = []
    real = mirror._send_stream
    mirror._send_stream = lambda key, source, size: (sent.append(source.name), real(key, source, size))[1]  # type: ignore[method-assign]
    (here / "cold_start").mkdir()
    (here / "cold_start" / "new.json").write_text("{}")
    later = first.model_copy(update={"step": 7, "checkpoints": first.checkpoints[1:]})
    mirror.send(here, state_of(later))
    assert sorted(sent) == ["config.json", "events.jsonl", "new.json"], "no checkpoint is sent twice"
    assert {stored.path for stored in mirror.newest().files if stored.path.startswith("checkpoints")} == {  # type: ignore[union-attr]
        path for path in contents(here) if path.startswith(later.checkpoint)
    }
    assert objects(mirror) == 1 + len(mirror.newest().files), "older states are gone"  # type: ignore[union-attr]
    assert config.run.name == first.run_id


def objects(mirror: Mirror) -> int:
    infos = mirror._files.get_file_info(fs.FileSelector(mirror._root, recursive=True))
    return sum(info.type == fs.FileType.File for info in infos)


class Unreliable:
    """A file system that fails now and then, also in the middle of a stream; what was written before stays, cut off."""

    def __init__(self, real: Any, fails: Callable[[], bool]) -> None:
        self._real, self._fails = real, fails

    def __getattr__(self, name: str) -> Any:
        action = getattr(self._real, name)

        def tried(*arguments: Any, **options: Any) -> Any:
            if self._fails():
                raise OSError(f"{name}: connection reset")
            result = action(*arguments, **options)
            return Torn(result, self._fails) if name == "open_output_stream" else result

        return tried


class Torn:
    def __init__(self, stream: Any, fails: Callable[[], bool]) -> None:
        self._stream, self._fails = stream, fails

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, content: bytes) -> None:
        """Whole, or half with an error, or half without one."""
        whole = not self._fails()
        self._stream.write(content if whole else content[: len(content) // 2])
        if not whole and len(content) % 2:
            raise OSError("connection reset")


def unreliable(url: str, fails: Callable[[], bool]) -> Mirror:
    mirror = Mirror(url, no_wait)
    mirror._files = Unreliable(mirror._files, fails)
    return mirror


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.35))
def test_whatever_breaks_a_reader_finds_one_whole_state_the_newest_that_was_sent(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    """The local disk in the place of a server: its files are replaced in place and cut off by a broken stream, which S3 spares us."""
    tmp_path = tmp_path_factory.mktemp("broken")
    here, there = tmp_path / "here", (tmp_path / "there").as_uri()
    manifest = run_of(here, 2)
    chance = random.Random(seed)
    arrived: list[int] = []
    failed = 0
    for step in range(3, 8):
        (here / "events.jsonl").write_text(f"{step}\n" * step)
        (here / "index" / "vectors" / "part.bin").write_bytes(b"v" * step)  # made anew, under the same name
        later = manifest.model_copy(update={"step": step})
        try:
            unreliable(there, lambda: chance.random() < share).send(here, state_of(later))
            arrived.append(step)
        except StorageFailed:
            failed += 1
        newest = Mirror(there, no_wait).newest()
        if arrived:
            assert newest is not None and newest.step >= arrived[-1], "a state that had arrived is lost"
        if newest is not None:
            target = tmp_path / f"fetched-{step}"
            Mirror(there, no_wait).fetch(target)
            assert (target / "events.jsonl").read_text() == f"{newest.step}\n" * newest.step
            assert (target / "index" / "vectors" / "part.bin").read_bytes() == b"v" * newest.step
            assert json.loads((target / MANIFEST).read_text())["step"] == newest.step
            assert (target / manifest.checkpoint / "state.json").is_file()
    assert len(arrived) + failed == 5
    mirror = Mirror(there, no_wait)
    mirror.send(here, state_of(manifest.model_copy(update={"step": 9})))
    assert objects(mirror) == 1 + len(mirror.newest().files), "nothing that a failure left behind stays"  # type: ignore[union-attr]


def test_what_could_not_be_removed_once_is_removed_later(tmp_path: Path) -> None:
    here, there = tmp_path / "here", (tmp_path / "there").as_uri()
    manifest = run_of(here, 2)
    removing = Unreliable(fs.LocalFileSystem(), lambda: False)
    removing.delete_file = no_more  # type: ignore[attr-defined]
    for step in (3, 4):
        (here / "index" / "vectors" / "part.bin").write_bytes(b"v" * step)
        mirror = Mirror(there, no_wait)
        if step == 4:
            mirror._files = removing  # type: ignore[assignment]
            with pytest.raises(StorageFailed, match="no more"):
                mirror.send(here, state_of(manifest.model_copy(update={"step": step})))
        else:
            mirror.send(here, state_of(manifest.model_copy(update={"step": step})))
    mirror = Mirror(there, no_wait)
    mirror.send(here, state_of(manifest.model_copy(update={"step": 5})))
    assert objects(mirror) == 1 + len(mirror.newest().files)  # type: ignore[union-attr]


def no_more(path: str) -> None:
    raise OSError(f"no more is removed: {path}")


def test_a_short_disturbance_is_not_noticed_and_a_long_one_is_one_line(tmp_path: Path, url: str) -> None:
    manifest = run_of(tmp_path / "here", 2)
    calls = 0

    def every_seventh() -> bool:
        nonlocal calls
        calls += 1
        return calls % 7 == 0

    waited: list[float] = []
    mirror = unreliable(url, every_seventh)
    mirror._sleep = waited.append
    mirror.send(tmp_path / "here", state_of(manifest))
    assert waited and set(waited) == {1.0}
    mirror = unreliable(url, lambda: True)
    mirror._sleep = waited.append
    with pytest.raises(StorageFailed, match=f"connection reset, {ATTEMPTS} times") as error:
        mirror.send(tmp_path / "here", state_of(manifest))
    assert waited[-5:] == [1.0, 2.0, 4.0, 8.0, 16.0] and "\n" not in str(error.value)


KILLED = """
import os, sys
from pathlib import Path
from medr3.run.manifest import open_manifest
from medr3.run.mirroring import state_of
from medr3.storage import Mirror
left = int(sys.argv[3])
def die(event, arguments):
    global left
    left -= event == "open" and "here" in str(arguments[0])
    if not left:
        os._exit(9)
manifest, mirror = open_manifest(Path(sys.argv[1])), Mirror(sys.argv[2])
later = manifest.model_copy(update={"step": 9})
(Path(sys.argv[1]) / "events.jsonl").write_text("later")
sys.addaudithook(die)
mirror.send(Path(sys.argv[1]), state_of(later))
"""


@pytest.mark.parametrize("opened", [1, 4])
def test_a_sender_that_is_killed_leaves_the_state_before(tmp_path: Path, opened: int) -> None:
    here, there = tmp_path / "here", (tmp_path / "there").as_uri()
    manifest = run_of(here, 2)
    Mirror(there, no_wait).send(here, state_of(manifest))
    before = (here / "events.jsonl").read_bytes()
    (here / "index" / "more.bin").write_bytes(b"more")
    command = [sys.executable, "-c", KILLED, str(here), there, str(opened)]
    assert subprocess.run(command, check=False, cwd=Path.cwd()).returncode == 9
    Mirror(there, no_wait).fetch(tmp_path / "fetched")
    assert open_manifest(tmp_path / "fetched") == manifest
    assert (tmp_path / "fetched" / "events.jsonl").read_bytes() == before


def test_a_fetch_that_was_interrupted_goes_on_and_a_changed_object_is_refused(tmp_path: Path, url: str) -> None:
    here, empty = tmp_path / "here", tmp_path / "empty"
    manifest = run_of(here, 2)
    Mirror(url, no_wait).send(here, state_of(manifest))
    half = unreliable(url, iter([*[False] * 9, *[True] * 99]).__next__)
    with pytest.raises(StorageFailed):
        half.fetch(empty)
    assert not (empty / MANIFEST).exists(), "the manifest comes last"
    already = {path: path.stat().st_mtime_ns for path in empty.rglob("*") if path.is_file() and path.suffix != ".unfinished"}
    assert already
    mirror = Mirror(url, no_wait)
    mirror.fetch(empty)
    assert all(path.stat().st_mtime_ns == at for path, at in already.items())
    assert open_manifest(empty) == manifest
    weights = f"{manifest.checkpoint}/rank-00000-of-00001.safetensors"
    with mirror._files.open_output_stream(mirror._at(weights)) as stream:
        stream.write(b"x" * (here / weights).stat().st_size)
    with pytest.raises(StorageFailed, match="is not what was sent as"):
        mirror.fetch(tmp_path / "third")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "checkpoints/../../x", "", "other/file", "index\\..\\x"])
def test_an_inventory_from_outside_writes_nowhere_else(tmp_path: Path, path: str) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "object").write_bytes(b"x")
    stored = Stored(path=path, key="object", size=1, checksum="")
    inventory = Inventory(run_id="parent", step=1, generation=1, files=[stored]).sealed()
    (there / f"{INVENTORY}-1.json").write_text(inventory.model_dump_json())
    with pytest.raises(StorageFailed, match="which no run has"):
        Mirror(there.as_uri(), no_wait).fetch(tmp_path / "target")
    assert not (tmp_path / "target").exists() and not (tmp_path / "outside").exists()


def test_an_inventory_that_was_cut_off_or_changed_is_none(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    whole = Inventory(run_id="parent", step=1, generation=1, files=[]).sealed().model_dump_json()
    (there / f"{INVENTORY}-1.json").write_text(whole)
    for name, content in (("2", whole[:-5]), ("3", whole.replace('"step":1', '"step":2')), ("4", ""), ("5", "[]")):
        (there / f"{INVENTORY}-{name}.json").write_text(content)
    newest = Mirror(there.as_uri(), no_wait).newest()
    assert newest is not None and newest.step == 1


def test_rows_that_are_joined_while_they_are_sent_are_there_once(tmp_path: Path) -> None:
    here = tmp_path / "here"
    manifest = run_of(here, 2)
    store = TrajectoryStore(here / "trajectories")
    for step in range(2, 5):
        rows = to_table([episode(f"g{step}", index, WeightVersion(1, 0)) for index in range(2)])
        store.write(step, 1, [with_ending(rows, "trained", "", step, WeightVersion(1, 0))])
    mirror = Mirror((tmp_path / "there").as_uri(), no_wait)
    real, done = mirror._send_stream, []

    def and_compact(key: str, source: Path, size: int) -> str:
        if source.suffix == ".parquet" and not done:
            done.append(store.compact(4))
        return real(key, source, size)

    mirror._send_stream = and_compact  # type: ignore[method-assign]
    mirror.send(here, state_of(manifest))
    mirror.fetch(tmp_path / "fetched")
    assert done and read(tmp_path / "fetched" / "trajectories").equals(read(here / "trajectories"))


def test_a_checkpoint_that_goes_while_it_is_sent_is_not_named(tmp_path: Path) -> None:
    here = tmp_path / "here"
    manifest = run_of(here, 2)
    mirror = Mirror((tmp_path / "there").as_uri(), no_wait)
    mirror.send(here, state_of(manifest))
    gone = manifest.model_copy(
        update={"step": 5, "checkpoints": [manifest.checkpoints[-1].model_copy(update={"folder": "checkpoints/x"})]}
    )
    with pytest.raises(StorageFailed, match="went before it was sent"):
        mirror.send(here, state_of(gone))
    newest = Mirror((tmp_path / "there").as_uri(), no_wait).newest()
    assert newest is not None and newest.step == manifest.step


def test_another_run_s_place_is_left_alone(tmp_path: Path, url: str) -> None:
    manifest = run_of(tmp_path / "here", 1)
    Mirror(url, no_wait).send(tmp_path / "here", state_of(manifest))
    other = configuration(tmp_path / "other", f"run.mirror={url}", "run.name=other")
    for anew in (False, True):
        with pytest.raises(UserError, match="holds the run parent: give other a place of its own"):
            use_mirror(other, begin_anew=anew)
    with pytest.raises(StorageFailed, match="holds the run parent"):
        Mirror(url, no_wait).send(tmp_path / "here", state_of(manifest.model_copy(update={"run_id": "other"})))
    config = configuration(tmp_path / "here", f"run.mirror={url}")
    use_mirror(config, begin_anew=True)
    assert Mirror(url, no_wait).newest() is None, "a course that begins anew leaves nothing of the one before"


def test_what_is_here_comes_before_what_is_there(tmp_path: Path) -> None:
    here, url = tmp_path / "here", (tmp_path / "there").as_uri()
    manifest = run_of(here, 3)
    Mirror(url, no_wait).send(here, state_of(manifest.model_copy(update={"step": 2})))
    config = configuration(here, f"run.mirror={url}")
    use_mirror(config, begin_anew=False)
    assert resume(config) == manifest


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/backup/run", "must name a folder"), ("s3://", "must name a folder"), ("ftp://host/run", "must name a folder"),
        ("s3://key:secret@bucket/run", "no credentials"), ("s3://bucket/run?secret_key=x", "no credentials"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_and_one_with_a_secret_are_refused(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as error:
        configuration(tmp_path, f"run.mirror={url}")
    assert "Traceback" not in str(error.value)


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medr3.storage.ATTEMPTS", 1)
    config = configuration(tmp_path, f"run.mirror=s3://no-such-bucket/run?{server}")
    manifest = run_of(tmp_path / "here", 1)
    with pytest.raises(StorageFailed) as error:
        Mirror(config.run.mirror, no_wait).send(tmp_path / "here", state_of(manifest))
    assert "\n" not in str(error.value) and "no-such-bucket" in str(error.value)


def test_the_newest_state_is_sent_beside_the_training_and_a_failure_is_a_warning(tmp_path: Path) -> None:
    here, url = tmp_path / "here", (tmp_path / "there").as_uri()
    manifest = run_of(here, 2)
    said: list[str] = []

    async def scenario() -> None:
        mirroring = Mirroring(configuration(here, f"run.mirror={url}"), said.append)
        for step in (2, 3, 4, 5):
            mirroring.send(manifest.model_copy(update={"step": step}))
        assert not mirroring.reads or mirroring.reads == manifest.checkpoint
        await mirroring.finish()
        assert mirroring._mirror is not None
        assert [mirroring._mirror.newest().step, said] == [5, []]  # type: ignore[union-attr]
        shutil.rmtree(here / "checkpoints")
        mirroring.send(manifest.model_copy(update={"step": 6, "checkpoints": manifest.checkpoints[:1]}))
        await mirroring.finish()
        assert said and said[0].startswith("warning: run.mirror has no copy of step 6:") and "\n" not in said[0]
        assert mirroring.reads == ""

    asyncio.run(scenario())


def test_without_a_mirror_nothing_is_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        mirroring = Mirroring(configuration(tmp_path), print)
        mirroring.send(None)  # type: ignore[arg-type]
        await mirroring.finish()
        await mirroring.stop(1)

    asyncio.run(scenario())
    assert State("r", 1, 1, [], b"").step == 1


HANGING = """
import asyncio, sys, time
from types import SimpleNamespace
from medr3.run.mirroring import Mirroring
mirroring = Mirroring(SimpleNamespace(run=SimpleNamespace(mirror=sys.argv[1], folder=None)), print)
mirroring._mirror = SimpleNamespace(send=lambda folder, state: time.sleep(3600))
async def scenario():
    mirroring.send(SimpleNamespace(checkpoint="c", checkpoints=[], run_id="r", step=1, generation=1, model_dump=lambda mode: {}))
    await asyncio.sleep(0.1)
    await mirroring.stop(0.2)
asyncio.run(scenario())
"""


def test_a_place_that_hangs_holds_no_process_that_is_told_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, tmp_path.as_uri()]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "warning: run.mirror is behind: c was not sent within 0 s\n"
