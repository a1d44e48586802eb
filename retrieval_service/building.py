"""Builds an index beside its place, stage by stage on disk, and gives it its name when it is complete.

read ▶ order ▶ [weigh] ▶ encode ▶ nearest (FAISS) ▶ words (BM25) ▶ recall ▶ checksums ▶ manifest ▶ rename

Every stage leaves files that are complete once they have their names, so a build that was killed, or whose disk was full, goes on from
there when it is started again for the same source and settings. Nothing but the vectors of one batch and FAISS's own index stands in
memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retrieval_service import manifest
from retrieval_service.config import RetrievalConfig
from retrieval_service.dense import DenseIndex
from retrieval_service.encoders import Encoder, HashedNgrams, load_encoder
from retrieval_service.encoding import Work, encode
from retrieval_service.identity import identity, scopes_of
from retrieval_service.ladder import AUTO, chosen
from retrieval_service.manifest import Identity, IndexManifest, IndexRefused, Origin
from retrieval_service.postings import write_lexical
from retrieval_service.staging import INDEX, Rows, Staged, Tell, stage, write_whole
from retrieval_service.vectors import FILE as VECTORS_FILE
from retrieval_service.vectors import VectorShards, exact_vectors
from tasks.questions import Document

PLAN, LOCK = "plan.json", "lock"
_FULL_BYTES = 16 << 20  # a disk with less is full: larger files than this are written
_RECALL_QUERIES = 256  # ±0.02 at worst, and usually a tenth of that
_QUERY_WORDS = 12  # of a document: what it is asked with when recall is measured
_SEED = 0


class BuildFailed(Exception):
    """The machine did not let the build end (a full disk, no memory); what is done so far is kept where it can go on."""


class Source(NamedTuple):
    """What is indexed. `read` starts anew each time; equal fingerprints mean that it would read the same."""

    read: Callable[[], Iterable[Document]]
    fingerprint: str
    origin: Origin = Origin()


class Parent(NamedTuple):
    """The version of which the first documents of a source are taken: these of its rows, in this order."""

    folder: Path
    rows: Rows
    index_hash: str


def quiet(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def build(documents: Iterable[Document], folder: Path, config: RetrievalConfig) -> IndexManifest:
    """An index of documents that can be read once only; a build that fails leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
    try:
        return _build(Source(lambda: documents, ""), unfinished, folder, config, 1, quiet, None)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build_from(
    source: Source,
    folder: Path,
    config: RetrievalConfig,
    *,
    workers: int = 1,
    tell: Tell = quiet,
    parent: Parent | None = None,
) -> IndexManifest:
    """An index of documents that can be read again, so that a build that was ended goes on where it was."""
    if folder.exists() and any(folder.iterdir()):
        raise IndexRefused(f"{folder} is there already, and an index is immutable: choose another folder")
    unfinished = folder.parent / f".{folder.name}.building"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with _alone(unfinished):
            plan = hashlib.sha256(
                f"{source.fingerprint}\n{_settings(config)}\n{parent and parent.index_hash}".encode()
            ).hexdigest()
            _start_anew_unless(plan, unfinished)
            built = _build(source, unfinished, folder, config, workers, tell, parent)
    except (OSError, MemoryError) as error:
        kept = f"what is done so far is kept in {unfinished}: the same command goes on from there"
        advice = kept if unfinished.exists() else "choose a folder that can be written"
        raise BuildFailed(f"{folder}: {_reason(error, folder)}; {advice}") from error
    shutil.rmtree(unfinished)
    return built


def _reason(error: OSError | MemoryError, folder: Path) -> str:
    """numpy and FAISS do not pass on why a file could not be written, so the disk is asked."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    disk = next(path for path in folder.absolute().parents if path.exists())
    if error.errno == errno.ENOSPC or shutil.disk_usage(disk).free < _FULL_BYTES:
        return "no space is left on the disk"
    return " ".join((error.strerror or str(error)).split())


def _build(
    source: Source, unfinished: Path, folder: Path, config: RetrievalConfig, workers: int, tell: Tell, parent: Parent | None
) -> IndexManifest:
    encoder = load_encoder(config)
    if config.factory != AUTO:
        DenseIndex.empty(encoder.dimensions, config.factory)  # a string that cannot be is refused before hours of encoding
    target = unfinished / INDEX
    target.mkdir(exist_ok=True)
    staged = Staged.found(unfinished) or stage(source.read(), unfinished, tell, parent.rows if parent else None)
    config = chosen(config, staged.rows, encoder.dimensions)
    reused = parent.folder if parent and not isinstance(encoder, HashedNgrams) else None  # those learn from the whole corpus
    work = Work(staged, config.model_dump_json(), reused)
    shards = encode(work, workers, tell)
    recall = _build_dense(shards, staged, target, config, tell)
    tell("words", 0, staged.batches)
    tokens = write_lexical(
        [work.words(batch) for batch in range(staged.batches)],
        staged.batch_rows(0).stop,
        scopes_of(dict(staged.collections)),
        target,
        lambda done: tell("words", done, staged.batches),
    )
    tell("checksums", 0, 0)
    built = IndexManifest(
        identity=identity(encoder, config, config.factory),
        corpus_hash=staged.corpus_hash,
        documents=staged.rows,
        collections=dict(staged.collections),
        tokens=tokens,
        recall=recall,
        files={path.name: manifest.file_checksum(path) for path in sorted(target.iterdir()) if path.name != manifest.FILE},
        origin=source.origin,
        parent=parent.index_hash if parent else "",
    ).sealed()
    write_whole(target / manifest.FILE, built.as_bytes())
    return _put_in_place(target, folder, built)


def _build_dense(shards: VectorShards, staged: Staged, target: Path, config: RetrievalConfig, tell: Tell) -> dict[str, float]:
    """Writes the FAISS index, and beside one that is not exact the vectors; returns its recall."""
    tell("nearest", 0, staged.batches)
    index = DenseIndex.build(
        shards, config.factory, config.nprobe, config.ef_search, lambda done: tell("nearest", done, staged.batches)
    )
    index.save(target)
    if config.factory == "Flat":
        return {}
    shards.save(target / VECTORS_FILE)
    tell("recall", 0, 0)
    index = index.searching(config.nprobe, config.ef_search, exact_vectors(target))
    return index.recall(_queries(staged, target, config), shards)


def _queries(staged: Staged, target: Path, config: RetrievalConfig) -> npt.NDArray[np.float32]:
    """Some documents asked for with their first words: harder than their own vectors, of which each would be its own nearest."""
    rows = np.sort(np.random.default_rng(_SEED).choice(staged.rows, min(_RECALL_QUERIES, staged.rows), replace=False))
    encoder: Encoder = load_encoder(config)
    if isinstance(encoder, HashedNgrams):
        encoder = encoder.load(target)
    texts = staged.documents().fields(rows, ["text"])["text"]
    return encoder.encode([" ".join(text.split()[:_QUERY_WORDS]) for text in texts], "query")


def _settings(config: RetrievalConfig) -> str:
    """What of the configuration the files of a build depend on."""
    names = {"encoder", "encoder_pooling", "query_prefix", "document_prefix", "dimensions", "factory", "nprobe", "ef_search"}
    wanted: Identity = identity(load_encoder(config), config, config.factory)
    return config.model_dump_json(include=names) + wanted.model_dump_json()


@contextmanager
def _alone(unfinished: Path) -> Iterator[None]:
    """Two builds of one index would write the same files; the lock goes with its process, however that ends."""
    with (unfinished / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexRefused(
                f"{unfinished} is being built by another process: wait for it, or choose another folder"
            ) from None
        yield


def _start_anew_unless(plan: str, unfinished: Path) -> None:
    path = unfinished / PLAN
    if path.exists() and path.read_text() == plan:
        return
    for old in unfinished.iterdir():
        if old.name != LOCK:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    write_whole(path, plan.encode())


def _put_in_place(target: Path, folder: Path, built: IndexManifest) -> IndexManifest:
    target.chmod(0o755)  # a temporary folder is closed to the other users of a cluster
    try:
        target.rename(folder)  # over an empty folder it succeeds, over anything else it fails
    except OSError:
        present = IndexManifest.read(folder)
        if present.index_hash != built.index_hash:
            raise IndexRefused(f"{folder} holds another index, and an index is immutable; choose another folder") from None
        return present
    return built
