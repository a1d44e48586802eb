"""One checksum of a weights file, computed alike by the process that writes it and by every process that reads it.

The file is read as safetensors lays it out (8 bytes of header length, a JSON header, then the tensors), so neither torch nor
numpy is needed and nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# hashlib releases the interpreter lock, so tensors hash in parallel; more threads than this only wait for memory.
_THREADS = 4
_LENGTH_BYTES = 8


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
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
        if start > len(view):
            raise ValueError(f"{path}: not a complete safetensors file: the header ends at byte {start} of {len(view)}")
        header = json.loads(bytes(view[_LENGTH_BYTES:start]))
        header.pop("__metadata__", None)
        names = sorted(header)

        def tensor_digest(name: str) -> bytes:
            begin, end = (start + offset for offset in header[name]["data_offsets"])
            if end > len(view):
                raise ValueError(f"{path}: tensor {name} ends at byte {end} of {len(view)}: the file is cut off")
            with view[begin:end] as tensor:
                return hashlib.blake2b(tensor, digest_size=32).digest()

        with ThreadPoolExecutor(_THREADS) as pool:
            digests = list(pool.map(tensor_digest, names))
    total = hashlib.blake2b(digest_size=16)
    for name, digest in zip(names, digests, strict=True):
        total.update(json.dumps([name, header[name]["dtype"], header[name]["shape"]]).encode())
        total.update(digest)
    return total.hexdigest()
