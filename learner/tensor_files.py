"""Safetensors files read by rows and written as a stream, so that nothing is gathered, held twice or pickled.

A tensor may lie in several files as chunks of rows. Their first rows stand in the files' metadata, in the words of
torch.distributed.checkpoint, whose HuggingFaceStorageReader reads the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from learner.checked_file import write_checked

CHUNKS = "DCP_SHARDING_INFO"  # key of the metadata: by tensor, where its chunk begins
BEGINS = "saved_offsets"
DTYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.uint8: "U8", torch.int64: "I64",
}  # fmt: skip


class FileRefused(Exception):
    """A file of tensors that is missing or broken; the text names it."""


class Entry(NamedTuple):
    """A tensor to be written: its description is needed before all data, its data only when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first_row: int
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_tensors(path: Path, entries: Sequence[Entry]) -> None:
    """One tensor in memory at a time; on disk, and not merely in the page cache, when this returns. The file has a checksum."""
    metadata = {"format": "pt"}
    if any(entry.first_row for entry in entries):
        begins = {entry.name: {BEGINS: [entry.first_row, *[0] * (len(entry.shape) - 1)]} for entry in entries}
        metadata[CHUNKS] = json.dumps(begins)
    tensors, end = {}, 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        tensors[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    write_checked(path, metadata, tensors, (_bytes(entry) for entry in entries))


def _bytes(entry: Entry) -> memoryview:
    tensor = entry.read().detach().to("cpu", entry.dtype).contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class _Chunk(NamedTuple):
    first_row: int
    shape: tuple[int, ...]
    file: Any


class TensorFiles:
    """Tensors by name; opening reads the headers only, which proves that no file is cut off."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._chunks: dict[str, list[_Chunk]] = {}
        for path in paths:
            file = _open(path)
            begins = _begins(path, (file.metadata() or {}).get(CHUNKS, "{}"))
            for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                first_row = begins.get(name, 0)
                self._chunks.setdefault(name, []).append(_Chunk(first_row, tuple(file.get_slice(name).get_shape()), file))

    @property
    def names(self) -> set[str]:
        return set(self._chunks)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        chunks = self._chunks[name]
        return (sum(chunk.shape[0] for chunk in chunks), *chunks[0].shape[1:]) if chunks[0].shape else ()

    def rows(self, name: str, first_row: int, count: int) -> Tensor:
        """Rows of one tensor, in whichever chunks they lie; nothing else is read."""
        parts = []
        for chunk in sorted(self._chunks[name], key=lambda chunk: chunk.first_row):
            start, end = max(first_row - chunk.first_row, 0), min(first_row + count - chunk.first_row, chunk.shape[0])
            if start < end:
                parts.append(chunk.file.get_slice(name)[start:end])
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def whole(self, name: str) -> Tensor:
        return self.rows(name, 0, self.shape(name)[0])


def _begins(path: Path, text: str) -> dict[str, int]:
    """The first rows of chunks, by tensor."""
    try:
        return {name: int(said[BEGINS][0]) if said[BEGINS] else 0 for name, said in json.loads(text).items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise FileRefused(f"{path} says in {CHUNKS} nothing that can be read: copy it again, or name another folder") from None


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise FileRefused(f"{path} is missing: copy it again, or name another folder") from None
    except (SafetensorError, OSError) as error:
        raise FileRefused(f"{path} is truncated or corrupt ({error}): copy it again, or name another folder") from None
