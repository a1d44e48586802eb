"""Documents from files and folders, in the formats in which corpora are published."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.corpora.chunking import Chunking, chunks
from tasks.corpora.pubmed import read_pubmed
from tasks.questions import Document
from tasks.reading import Malformed
from tasks.rows import COLUMNAR, FileRefused, Found, Row, files_of, in_one_line, rows_of, shape_of
from tasks.rows.opening import Damaged, open_bytes

BLOCK = 64 << 10
CORPUS_FORMATS = ("documents", "pubmed", "text")
_TEXTS = ("text", "content", "contents")
_ROW_FIELDS = frozenset({"id", "title", *_TEXTS, "PMID"})
_SUFFIXES = {".xml": "pubmed", ".xml.gz": "pubmed", ".txt": "text", ".txt.gz": "text", ".md": "text"}


def read_corpus(
    path: Path,
    format_: str | None = None,
    *,
    chunking: Chunking | None = None,
    on_malformed: Callable[[Malformed], None] | None = None,
) -> Iterator[Document]:
    """The documents of a file or of all files below a folder, in the order of their names; none is ever in memory beside them.

    ============ ==================================================================================================
    documents    JSON lines, JSON array, Parquet or Arrow with id, title and text, content or contents: MedRAG's, our own
    pubmed       PubMed's baseline and update XML, packed or not
    text         plain text, .txt or .md, cut into pieces (`chunking`, else MedRAG's 1000 and 200 characters)
    ============ ==================================================================================================

    Each file's format follows from its name unless it is said. With `chunking`, longer documents of the other formats are cut, too:
    ``id`` becomes ``id#0``, ``id#1``. A row that is no document goes to `on_malformed`; without it, it is refused with its place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.jsonl").write_text('{"id": "a_0", "title": "A", "content": "x", "contents": "A. x"}')
        ...     [(found.id, found.text) for found in read_corpus(Path(folder))]
        [('a_0', 'x')]
    """
    if format_ and format_ not in CORPUS_FORMATS:
        raise FileRefused(f"{format_}: no such format of a corpus; there are {', '.join(CORPUS_FORMATS)}")
    tell = on_malformed or _refuse
    for file, as_ in _files(path, format_):
        found: Iterator[Document | Malformed]
        if as_ == "pubmed":
            found = read_pubmed(file)
        elif as_ == "text":
            found = _texts(file, path, chunking or Chunking())
        else:
            found = _documents(file)
        for each in found:
            if isinstance(each, Malformed):
                tell(each)
            elif chunking is None or as_ == "text" or len(each.text) <= chunking.size:
                yield each
            else:
                yield from _cut(each, chunking)


def _refuse(malformed: Malformed) -> None:
    if not malformed.left_out:
        raise FileRefused(str(malformed))


def _files(path: Path, format_: str | None) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        texts = sorted(file for file in path.rglob("*") if file.is_file() and _format_of(file) != "documents")
        rows = []
        if format_ in (None, "documents"):
            try:
                rows = files_of(path)
            except FileRefused:
                if not texts:
                    raise
        both = [(file, _format_of(file)) for file in sorted([*texts, *rows])]
        wanted = [(file, as_) for file, as_ in both if format_ in (None, as_)]
        if not wanted:
            raise FileRefused(f"{path}: holds no file of the format {format_}")
        yield from wanted
    else:
        if not path.exists():
            raise FileRefused(f"{path}: No such file or directory: name a corpus")
        yield path, format_ or _format_of(path)


def _format_of(file: Path) -> str:
    return next((as_ for suffix, as_ in _SUFFIXES.items() if file.name.endswith(suffix)), "documents")


def _documents(path: Path) -> Iterator[Document | Malformed]:
    shape = shape_of(path, _ROW_FIELDS)
    unit, empty = "row" if shape in COLUMNAR else "line", True
    for row in rows_of(Found(path, shape)):
        empty = False
        try:
            yield _document(row)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            yield Malformed(path, f"{unit} {row.number}", in_one_line(reason), row.text())
        except ValueError as error:
            yield Malformed(path, f"{unit} {row.number}", in_one_line(error), row.text())
    if empty:
        raise FileRefused(f"{path}: is empty: write one document per line, as JSON")


def _document(row: Row) -> Document:
    fields = row.fields
    if not isinstance(fields, dict):
        raise ValueError(row.refused or f"must be an object, not {type(fields).__name__}")
    text = next((fields[name] for name in _TEXTS if fields.get(name)), None)
    if text is None:
        raise ValueError("no text: one of text, content, contents must be filled")
    known: dict[str, Any] = {name: fields[name] for name in Document.model_fields if fields.get(name) is not None}
    return Document.model_validate({**known, "text": text})


def _texts(file: Path, root: Path, chunking: Chunking) -> Iterator[Document | Malformed]:
    name = file.relative_to(root if root.is_dir() else file.parent)
    stem = (name.parent / name.name.split(".")[0]).as_posix()
    faults: list[Malformed] = []
    for number, piece in enumerate(chunks(_blocks(file, faults), chunking)):
        yield Document(id=f"{stem}_{number}", text=piece, title=name.name.split(".")[0])
    yield from faults


def _blocks(file: Path, faults: list[Malformed]) -> Iterator[str]:
    """A file's text; it ends where the file is damaged or no UTF-8."""
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(file) as bytes_:
        while True:
            try:
                block = bytes_.read1(BLOCK)
                yield decoder.decode(block, final=not block)
            except Damaged as damage:
                faults.append(Malformed(file, f"behind byte {number}", str(damage), ""))
                return
            except UnicodeDecodeError as error:
                faults.append(Malformed(file, f"behind byte {number + error.start}", "is no UTF-8 from here", ""))
                return
            if not block:
                return
            number += len(block)


def _cut(document: Document, chunking: Chunking) -> Iterator[Document]:
    for number, piece in enumerate(chunks([document.text], chunking)):
        yield document.model_copy(update={"id": f"{document.id}#{number}", "text": piece})
