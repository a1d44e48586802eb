"""`medr3 retrieval build`, `update` and `world`: indexes, their versions, and a corpus to try them on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from medr3.errors import UserError

if TYPE_CHECKING:
    from retrieval_service.config import RetrievalConfig
    from retrieval_service.manifest import IndexManifest
    from tasks.questions import Document

T = TypeVar("T")

GOOD_RECALL = 0.98  # of the exact nearest; an index below it is built all the same, and says so
MODEL_WORKERS = 1  # a model uses all cores by itself, and a GPU is one

Out = Annotated[Path, typer.Option(help="a new folder for the index")]
Format = Annotated[str, typer.Option("--format", help="of the corpus, where its names do not tell: medr3 data formats")]
Encoder = Annotated[str, typer.Option(help="folder of a transformers model; the embedded encoder needs none")]
Workers = Annotated[int, typer.Option(min=0, help="processes that encode; 0: one per core, or one for a model")]
Date = Annotated[str, typer.Option(help="of the corpus, for the manifest")]
Licence = Annotated[str, typer.Option(help="of the documents, for the manifest")]


def build(
    corpus: Annotated[
        list[Path], typer.Argument(metavar="CORPUS...", help="MedRAG's JSON lines, Parquet, PubMed XML, a folder of texts")
    ],
    out: Out,
    format_: Format = "",
    encoder: Encoder = "",
    pooling: Annotated[str, typer.Option(help="cls, mean or last, where the model's folder does not say")] = "",
    query_prefix: Annotated[str | None, typer.Option(help="such as 'query: ' for E5; the folder's own if left out")] = None,
    document_prefix: Annotated[str | None, typer.Option(help="such as 'passage: ' for E5")] = None,
    dimensions: Annotated[int, typer.Option(min=16, help="of the embedded encoder")] = 512,
    factory: Annotated[str, typer.Option(help="FAISS factory string; auto: by the number of documents")] = "auto",
    nprobe: Annotated[int, typer.Option(min=1, help="lists that an IVF factory looks into")] = 32,
    ef_search: Annotated[int, typer.Option(min=1, help="candidates that an HNSW factory keeps")] = 64,
    workers: Workers = 0,
    date: Date = "",
    licence: Licence = "",
) -> None:
    """Build an index of a corpus; one that was ended half-way goes on where it was."""
    from retrieval_service.building import Source
    from retrieval_service.manifest import Origin

    config = _config(
        {
            **({"encoder": encoder} if encoder else {}), "encoder_pooling": pooling, "query_prefix": query_prefix,
            "document_prefix": document_prefix, "dimensions": dimensions, "factory": factory, "nprobe": nprobe,
            "ef_search": ef_search,
        }
    )  # fmt: skip
    read, fingerprint = _reader(corpus, format_)
    origin = Origin(sources=tuple(path.name for path in corpus), date=date, licence=licence)
    from retrieval_service.building import build_from

    with _telling() as tell:
        _report(
            _understood(
                lambda: build_from(
                    Source(read, fingerprint, origin), out, config, workers=_processes(workers, config), tell=tell
                )
            ),
            out,
        )


def update(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="folder of a built index; it stays as it is")],
    out: Out,
    add: Annotated[list[Path] | None, typer.Option(help="corpus of further documents; may be repeated")] = None,
    retire: Annotated[Path | None, typer.Option(help="file of document ids to leave out, one per line")] = None,
    format_: Format = "",
    encoder: Encoder = "",
    workers: Workers = 0,
    date: Date = "",
    licence: Licence = "",
) -> None:
    """Make a new version of an index: documents added and retired, nothing else encoded again."""
    from retrieval_service.manifest import IndexManifest, Origin
    from retrieval_service.versions import update as make_version

    if not add and retire is None:
        raise UserError("--add, --retire: say what is to be added or retired")
    config = _config({"encoder": encoder} if encoder else {})
    read, fingerprint = _reader(add or [], format_)
    retired = _ids(retire) if retire else frozenset()
    old = _understood(lambda: IndexManifest.read(index)).origin
    sources = tuple(dict.fromkeys((*old.sources, *(path.name for path in add or []))))
    origin = Origin(sources=sources, date=date or old.date, licence=licence or old.licence)
    with _telling() as tell:
        _report(
            _understood(
                lambda: make_version(
                    index, out, config, add=read, added=fingerprint, retire=retired, origin=origin,
                    workers=_processes(workers, config), tell=tell,
                )
            ),
            out,
        )  # fmt: skip


def world(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="a new folder for corpus.jsonl and queries.jsonl")],
    documents: Annotated[int, typer.Option(min=1_000, max=900_000, help="of the training collection")] = 100_000,
    queries: Annotated[int, typer.Option(min=1, help="of each kind: plainly worded, by second name, misspelled")] = 500,
    seed: Annotated[int, typer.Option(help="the same seed makes the same world")] = 0,
) -> None:
    """Write a fictional corpus of any size with labelled queries, to try indexes on."""
    from medr3.evaluation.retrieval_world import write_world

    written = _understood(lambda: write_world(out, documents, queries, seed))
    print(f"{written.documents:,} documents in {out / 'corpus.jsonl'}, {written.queries:,} queries in {out / 'queries.jsonl'}")


def _config(fields: dict[str, object]) -> RetrievalConfig:
    from pydantic import ValidationError

    from medr3.validation import describe_validation
    from retrieval_service.config import RetrievalConfig

    try:
        return RetrievalConfig.model_validate(fields)
    except ValidationError as error:
        raise UserError("\n".join(describe_validation(error, RetrievalConfig))) from None


def _reader(paths: list[Path], format_: str) -> tuple[Callable[[], Iterator[Document]], str]:
    """Reads all paths one after another, and what tells this corpus from another one without reading it."""
    from tasks.corpora import read_corpus

    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder: name a corpus")

    def read() -> Iterator[Document]:
        for path in paths:
            yield from read_corpus(path, format_ or None)

    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()]
    marks = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return read, f"{format_}\n{marks}"


def _ids(path: Path) -> frozenset[str]:
    try:
        return frozenset(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--retire {path}: cannot be read: {error}") from None


def _processes(asked: int, config: RetrievalConfig) -> int:
    from retrieval_service.encoders import HashedNgrams

    if asked:
        return asked
    return (os.cpu_count() or 1) if config.encoder == HashedNgrams.name else MODEL_WORKERS


def _understood(what: Callable[[], T]) -> T:
    """Everything that a person can mend is one line."""
    from retrieval_service.building import BuildFailed
    from retrieval_service.manifest import IndexRefused

    try:
        return what()
    except (BuildFailed, IndexRefused, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from None


@contextmanager
def _telling() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage on a terminal, a line per stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        told: set[str] = set()

        def line(stage: str, done: int, total: int) -> None:
            if stage not in told:
                told.add(stage)
                print(stage + (f": {done:,} of {total:,} are there" if done and total else ""), file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=None)
            progress.update(tasks[stage], completed=done, total=total or None)

        yield bar


def _report(built: IndexManifest, folder: Path) -> None:
    if any(value < GOOD_RECALL for value in built.recall.values()):
        print(
            f"medr3: {folder}: finds too few of the nearest: build it again with a larger --nprobe or --ef-search, or --factory Flat",
            file=sys.stderr,
        )
    recall = ", ".join(f"recall at {k} {value:.3f}" for k, value in built.recall.items()) or "exact"
    print(
        f"{folder}: {built.documents:,} documents, {built.identity.dimensions} dimensions, {built.identity.factory} ({recall}),"
        f" {built.tokens:,} words, index {built.index_hash[:12]}"
    )
