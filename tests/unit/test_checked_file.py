from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from learner.checked_file import KEY, damage, write_checked
from learner.tensor_files import Entry, write_tensors

TENSORS = {"a": torch.arange(12, dtype=torch.float32).view(4, 3), "b": torch.tensor([1], dtype=torch.int64)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "rank.safetensors"
    entries = [
        Entry(name, held.dtype, tuple(held.shape), 2 if name == "a" else 0, held.detach) for name, held in TENSORS.items()
    ]
    write_tensors(path, entries)
    return path


def test_other_readers_read_it(written: Path) -> None:
    with safe_open(written, framework="pt") as file:
        assert all(torch.equal(file.get_tensor(name), held) for name, held in TENSORS.items())
        assert len(file.metadata()[KEY]) == 32
    assert damage(written) == ""


@given(st.data())
def test_any_flipped_bit_is_found(written: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    changed = written.with_name("flipped")
    changed.write_bytes(content)
    assert damage(changed)


@given(st.data())
def test_any_other_length_is_found(written: Path, data: st.DataObject) -> None:
    content = written.read_bytes()
    changed = written.with_name("other-length")
    changed.write_bytes(
        data.draw(st.one_of(st.integers(0, len(content) - 1).map(lambda end: content[:end]), st.just(content + b"\0")))
    )
    assert damage(changed)


def test_a_file_of_another_writer_proves_nothing(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain")
    assert damage(tmp_path / "plain") == "is no file of tensors with a checksum"


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    write_checked(tmp_path / "empty", {}, {}, [])
    assert damage(tmp_path / "empty") == ""
    assert damage(tmp_path / "missing") == "cannot be read (No such file or directory)"
