"""One checksum of a weights file, computed alike by the processes that write it and by every process that reads it.

The file is read as safetensors lays it out (8 bytes of header length, a JSON header, then the tensors), so neither torch nor
numpy is needed and nothing is copied. XXH3 notices damage and mixed versions at the speed of memory; it is no defence against
someone who forges weights, who could as well forge the checksum.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

from xxhash import xxh3_128

# The unit of parallel work. Part of the checksum's definition: another size is another checksum.
BLOCK_BYTES = 16 << 20
# XXH3 releases the interpreter lock, so blocks are hashed in parallel; more threads than this only wait for memory.
_THREADS = 4
_LENGTH_BYTES = 8


class StoredTensor(NamedTuple):
    """One tensor of the file: its type in safetensors' words, and where its bytes stand in the file."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


class MappedWeights:
    """A safetensors file in this process's memory, read-only and without a copy, until the `with` block ends."""

    def __init__(self, path: str | Path) -> None:
        with Path(path).open("rb") as file:
            # Every page is mapped at once: faulting them in one by one costs more than the hash.
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        self.bytes = memoryview(self._map)
        self.tensors = _stored_tensors(path, self.bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:  # the frames of an error may hold views; the memory goes with the last of them
            self.bytes.release()
            self._map.close()

    def digests(self, part: int = 0, parts: int = 1) -> list[bytes]:
        """Of every `parts`-th block, from block `part` on: ranks share the work, whatever rows they hold."""
        blocks = [
            (begin, min(begin + BLOCK_BYTES, tensor.end))
            for tensor in self.tensors
            for begin in range(tensor.begin, tensor.end, BLOCK_BYTES)
        ][part::parts]
        if len(blocks) < 2 or sum(end - begin for begin, end in blocks) < BLOCK_BYTES:  # not worth threads
            return [self._digest(block) for block in blocks]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._digest, blocks))

    def checksum(self, digests: Sequence[bytes]) -> str:
        """Hex digest over names, types, shapes, and the digests of all blocks in order."""
        total = xxh3_128(json.dumps([tensor[:3] for tensor in self.tensors]).encode())
        for digest in digests:
            total.update(digest)
        return total.hexdigest()

    def _digest(self, block: tuple[int, int]) -> bytes:
        with self.bytes[slice(*block)] as content:
            return xxh3_128(content).digest()


def weights_checksum(path: str | Path) -> str:
    """Hex digest over name, dtype, shape and bytes of every tensor in sorted name order; metadata and layout do not count.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"b": torch.ones(2), "a": torch.zeros(3)}, f"{folder}/1")
        ...     save_file({"a": torch.zeros(3), "b": torch.ones(2)}, f"{folder}/2", metadata={"format": "pt"})
        ...     weights_checksum(f"{folder}/1") == weights_checksum(f"{folder}/2")
        True
    """
    with MappedWeights(path) as weights:
        return weights.checksum(weights.digests())


def _stored_tensors(path: str | Path, view: memoryview) -> list[StoredTensor]:
    """What the header says, in sorted name order; refused where it says more than the file holds."""
    start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if start > len(view):
        raise ValueError(f"{path}: not a complete safetensors file: the header ends at byte {start} of {len(view)}")
    try:
        header = json.loads(bytes(view[_LENGTH_BYTES:start]))
        header.pop("__metadata__", None)
        told = [
            (name, str(entry["dtype"]), list(entry["shape"]), *entry["data_offsets"]) for name, entry in sorted(header.items())
        ]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its header is none of safetensors ({type(error).__name__}): the file is damaged") from None
    tensors = []
    for name, dtype, shape, *offsets in told:
        if len(offsets) != 2 or not all(type(offset) is int and offset >= 0 for offset in offsets):
            raise ValueError(f"{path}: tensor {name[:80]!r} has no place in the file: its header is damaged")
        begin, end = (start + offset for offset in offsets)
        if end > len(view):
            raise ValueError(f"{path}: tensor {name} ends at byte {end} of {len(view)}: the file is cut off")
        tensors.append(StoredTensor(name, dtype, shape, begin, end))
    return tensors
