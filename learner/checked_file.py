"""A safetensors file that carries its own checksum, so that a flipped bit is found before it is trained on. Knows no torch.

The checksum stands in the header's metadata and counts the whole file, header included, as if its own place held zeros. Other
readers of safetensors ignore it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from xxhash import xxh3_128

METADATA, KEY = "__metadata__", "xxh3_128"
PLACE = "0" * 32  # what a header holds there until all data is written; of a checksum's length
ALIGNMENT = 8  # bytes; the format wants its data aligned to the largest dtype
BLOCK = 2**24  # bytes read at once


def write_checked(
    path: Path, metadata: dict[str, str], tensors: dict[str, dict[str, Any]], data: Iterable[bytes | memoryview]
) -> None:
    """Streams a file with its checksum; on disk, and not merely in the page cache, when this returns."""
    text = json.dumps({METADATA: {KEY: PLACE, **metadata}, **tensors}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    total = xxh3_128(head)
    with path.open("wb") as file:
        file.write(head)
        for block in data:
            total.update(block)
            file.write(block)
        file.seek(head.index(PLACE.encode()))
        file.write(total.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def damage(path: Path) -> str:
    """What is wrong with a file: it is cut off, is none, or holds other bytes than were written. Empty where nothing is."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            size = path.stat().st_size
            if 8 + length > size:
                return "is cut off"
            head += file.read(length)
            header = json.loads(head[8:])
            if size != 8 + length + max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != METADATA), default=0
            ):
                return "is cut off"
            told = header[METADATA][KEY]
            return "" if told == _checksum(head, told, file) else "has other bytes than were written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return "is no file of tensors with a checksum"


def _checksum(head: bytes, told: str, rest: BinaryIO) -> str:
    total = xxh3_128(head.replace(told.encode(), PLACE.encode(), 1))
    while block := rest.read(BLOCK):
        total.update(block)
    return total.hexdigest()
