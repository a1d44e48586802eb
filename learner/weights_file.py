"""One safetensors file written by all ranks at once: each copies its own rows to their place, and nothing is ever gathered."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist

from learner.shards import WeightShard

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 64  # a cache line: readers use tensors where they stand in the file


@dataclass(frozen=True, slots=True)
class SafetensorsLayout:
    """Where every byte of a safetensors file goes, known before there is any data. Tensors stand in the order they are given.

    Example:
        >>> layout = SafetensorsLayout.of({"a": (2, 3), "b": (4,)}, torch.bfloat16)
        >>> layout.begins["b"] - layout.begins["a"], layout.nbytes - layout.begins["b"]
        (12, 8)
    """

    header: bytes
    begins: dict[str, int]
    nbytes: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> SafetensorsLayout:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            offsets[name], end = end, end + prod(shape) * dtype.itemsize
            entries[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": shape, "data_offsets": (offsets[name], end)}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        return cls(header, {name: len(header) + offset for name, offset in offsets.items()}, len(header) + end)


def write_shards(path: Path, layout: SafetensorsLayout, shards: Iterable[WeightShard], dtype: torch.dtype, rank: int) -> None:
    """Every rank calls it with its own rows; when it returns, all of them are in the file. Rank 0 makes the file, or takes
    over one that is there already: its memory is warm, and every byte of it is written anew.
    """
    agree(_allocate(path, layout) if rank == 0 else "")
    visible = path.is_file() and path.stat().st_size == layout.nbytes
    agree("" if visible else f"rank {rank} does not see {path}, which rank 0 made: all learner workers must share this folder")
    descriptor = os.open(path, os.O_RDWR)
    try:
        for shard in shards:
            row_bytes = prod(shard.shape[1:]) * dtype.itemsize
            _copy(descriptor, layout.begins[shard.name] + shard.first_row * row_bytes, shard.rows, dtype)
    finally:
        os.close(descriptor)
    agree("")


def agree(error: str) -> None:
    """A barrier that fails on every rank, with the first rank's words, if any rank has an error: none is left waiting."""
    errors: list[str] = [error]
    if dist.is_initialized():
        errors = [""] * dist.get_world_size()
        dist.all_gather_object(errors, error)
    if first := next(filter(None, errors), ""):
        raise RuntimeError(first)


def _allocate(path: Path, layout: SafetensorsLayout) -> str:
    """The file with its header and all of its memory, so that a full disk is noticed here and not as a bus error later."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        try:
            file.truncate(layout.nbytes)
            os.posix_fallocate(file.fileno(), 0, layout.nbytes)
        except OSError as error:
            path.unlink()
            if error.errno != errno.ENOSPC:
                raise
            room = os.statvfs(path.parent)
            free = room.f_bavail * room.f_frsize
            return (
                f"{path.parent} has no room for {layout.nbytes / 2**20:,.0f} MiB of weights, {free / 2**20:,.0f} MiB are free: "
                "make it larger (containers: --shm-size), or name another folder"
            )
        file.write(layout.header)
    return ""


def _copy(descriptor: int, begin: int, rows: torch.Tensor, dtype: torch.dtype) -> None:
    """Only the pages of these rows are mapped, all at once: faulting them in one by one costs twice the copy itself."""
    if not rows.numel():
        return
    page = begin % mmap.ALLOCATIONGRANULARITY
    length = page + rows.numel() * dtype.itemsize
    with mmap.mmap(descriptor, length, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=begin - page) as mapped:
        target = torch.frombuffer(mapped, dtype=dtype, count=rows.numel(), offset=page)
        target.view(rows.shape).copy_(rows)
        del target  # or the map could not be closed
