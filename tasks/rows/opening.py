"""Files opened for reading once through, unpacked on the way; what a small file unpacks to is bounded."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from tasks.rows.row import FileRefused, in_one_line

BUFFER = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
# Text of questions and articles shrinks to a third or a tenth, repetitive tables to a fortieth; deflate's limit is 1032.
MOST_EXPANSION = 200
FREE_EXPANSION = 64 << 20  # bytes that any archive may have, so that small files of one repeated row are read

_FOREIGN = {
    b"PK\x03\x04": "is a ZIP archive: unpack it first",
    b"PAR1": "is Parquet: let its name end with .parquet",
    b"BZh": "is packed by bzip2: unpack it first",
    b"(\xb5/\xfd": "is packed by Zstandard: unpack it first",
    b"\xfd7zXZ": "is packed by xz: unpack it first",
    b"\xff\xfe": "is UTF-16: convert it to UTF-8",
    b"\xfe\xff": "is UTF-16: convert it to UTF-8",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself: fetch it with git lfs pull",
}


class Damaged(ValueError):
    """The file cannot be read on from here; what came before is whole."""


def open_bytes(path: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked where gzip packed them, behind a byte-order mark if it has one; a folder or pipe is none.

    Reading raises `Damaged` where an archive is cut short, broken, or larger than any honest one.
    """
    try:
        if not path.is_file():
            raise FileRefused(f"{path}: {'is no file' if path.exists() else 'No such file or directory'}: name a file of rows")
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror}: name a file of rows") from None
    head = file.read(len(max(_FOREIGN, key=len)))
    file.seek(0)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            file.close()
            raise FileRefused(f"{path}: {what}")
    plain: io.RawIOBase = _Unpacked(file) if head.startswith(GZIP_MAGIC) else file
    bytes_: io.BufferedReader = io.BufferedReader(plain, BUFFER)
    try:
        if bytes_.peek(len(UTF8_MARK)).startswith(UTF8_MARK):
            bytes_.read(len(UTF8_MARK))
    except Damaged as damage:
        bytes_.close()
        raise FileRefused(f"{path}: {damage}") from None
    except OSError as error:
        bytes_.close()
        raise FileRefused(f"{path}: {error.strerror}") from None
    return bytes_


class _Unpacked(io.RawIOBase):
    """What gzip packed, read once through, for as long as it does not expand beyond all measure."""

    def __init__(self, packed: io.FileIO) -> None:
        self._packed, self._unpacked, self._out = packed, gzip.GzipFile(fileobj=packed), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        try:
            found = self._unpacked.read1(len(view))
        except EOFError:
            raise Damaged("the archive ends early: it was cut short") from None
        except (OSError, zlib.error) as error:
            raise Damaged(f"the archive is broken: {in_one_line(error)}") from None
        view[: len(found)] = found
        self._out += len(found)
        if self._out > FREE_EXPANSION and self._out > MOST_EXPANSION * self._packed.tell():
            raise Damaged(f"the archive unpacks to more than {MOST_EXPANSION} times its size: it is refused as a bomb")
        return len(found)

    def close(self) -> None:
        self._unpacked.close()
        self._packed.close()
        super().close()
