"""Senders to a second place that hang, are overtaken, or meet files that go; and what a hostile inventory names."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest
import xxhash

from medr3.errors import UserError
from medr3.run.manifest import MANIFEST, manifest_bytes
from medr3.run.mirroring import Mirroring, state_of, use_mirror
from medr3.storage import INVENTORY, Inventory, Mirror, StorageFailed, Stored
from tests.resumable import configuration, trained_for
from tests.unit.test_storage import no_wait, run_of


def test_a_sender_that_hangs_removes_nothing_that_is_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll-back begins another course while a sender of the one before still hangs: its removals must not take what is newer."""
    there = (tmp_path / "there").as_uri()
    manifest = run_of(tmp_path / "here", 2)
    config = configuration(tmp_path / "here", f"run.mirror={there}")
    hangs, go_on, real = threading.Event(), threading.Event(), Mirror._send_bytes

    def slow(self: Mirror, key: str, path: str, content: bytes) -> Stored:
        if key.startswith(INVENTORY) and not hangs.is_set():
            hangs.set()
            go_on.wait(20)
        return real(self, key, path, content)

    monkeypatch.setattr(Mirror, "_send_bytes", slow)

    async def roll_back() -> None:
        said: list[str] = []
        before, after = Mirroring(config, said.append), Mirroring(config, said.append)
        before.send(manifest)
        await asyncio.to_thread(hangs.wait, 20)
        await before.stop(0.01)
        after.send(manifest.model_copy(update={"generation": 2}))
        await asyncio.sleep(0.2)
        go_on.set()
        await after.finish(20)

    asyncio.run(roll_back())
    newest = Mirror(there, no_wait).newest()
    assert newest is not None and newest.generation == 2
    Mirror(there, no_wait).fetch(tmp_path / "fetched")


def test_a_checkpoint_that_goes_file_by_file_while_it_is_sent_is_not_named(tmp_path: Path) -> None:
    here = tmp_path / "here"
    manifest = run_of(here, 2)
    mirror = Mirror((tmp_path / "there").as_uri(), no_wait)
    real = mirror._send_stream

    def pruned(key: str, source: Path, size: int) -> str:
        found = real(key, source, size)
        if "step-000002" in key:
            shutil.rmtree(here / manifest.checkpoint, ignore_errors=True)
        return found

    mirror._send_stream = pruned  # type: ignore[method-assign]
    with pytest.raises(StorageFailed, match="went before it was sent"):
        mirror.send(here, state_of(manifest))


def test_the_manifest_that_is_sent_is_the_file_whatever_the_environment_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest = trained_for(tmp_path, 1)
    monkeypatch.setenv("SOME_TOKEN", "reasoning")
    assert manifest_bytes(manifest) == (tmp_path / MANIFEST).read_bytes()
    assert json.loads(manifest_bytes(manifest))["controller"]["phase"] == "reasoning"


def test_an_object_outside_of_the_place_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    there = tmp_path / "there"
    there.mkdir()
    stored = Stored(path="config.json", key="../outside", size=1, checksum=xxhash.xxh3_128_hexdigest(b"x"))
    inventory = Inventory(run_id="parent", step=1, generation=1, files=[stored]).sealed()
    (there / f"{INVENTORY}-1.json").write_text(inventory.model_dump_json())
    with pytest.raises(StorageFailed):
        Mirror(there.as_uri(), no_wait).fetch(tmp_path / "target")


def test_a_place_whose_inventories_are_damaged_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """A run that began anew would remove what is there."""
    there = tmp_path / "there"
    manifest = run_of(tmp_path / "here", 2)
    Mirror(there.as_uri(), no_wait).send(tmp_path / "here", state_of(manifest))
    (inventory,) = there.glob(f"{INVENTORY}-*")
    inventory.write_bytes(inventory.read_bytes()[:-1])
    with pytest.raises(UserError, match="no inventory of it is whole: --resume never"):
        use_mirror(configuration(tmp_path / "new", f"run.mirror={there.as_uri()}"), begin_anew=False)
    use_mirror(configuration(tmp_path / "here", f"run.mirror={there.as_uri()}"), begin_anew=False)  # the run is here
    use_mirror(configuration(tmp_path / "new", f"run.mirror={there.as_uri()}"), begin_anew=True)
    assert not list(there.glob(f"{INVENTORY}-*"))
