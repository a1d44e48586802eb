"""A new version of an index: documents added and retired, everything else taken over.

The old folder stays as it is; whoever serves it may change over whenever they like. What a model encoded once is not encoded again. The
result is the same index, hash for hash, that a build of the resulting corpus would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from retrieval_service import documents as store
from retrieval_service.building import Parent, Source, build_from, quiet
from retrieval_service.config import RetrievalConfig
from retrieval_service.documents import Documents
from retrieval_service.identity import config_of, expected_identity
from retrieval_service.manifest import IndexManifest, Origin
from retrieval_service.staging import CorpusRefused, Tell
from tasks.questions import Document


def update(
    old: Path,
    new: Path,
    config: RetrievalConfig,
    *,
    add: Callable[[], Iterable[Document]] = list,
    added: str = "",
    retire: frozenset[str] = frozenset(),
    origin: Origin | None = None,
    workers: int = 1,
    tell: Tell = quiet,
) -> IndexManifest:
    """Builds `new` from the documents of `old` without those in `retire`, and those of `add` (with the fingerprint `added`).

    To replace a document, retire its id and add it. An id that is to be retired and is not there is refused.
    """
    present = IndexManifest.read(old)
    config = config_of(present, config)
    present.require(expected_identity(config), old)
    present.verify_files(old)
    documents = Documents.open(old / store.FILE)
    kept = _kept_rows(documents, retire, old)

    def read() -> Iterator[Document]:
        yield from (document for document in documents.read() if document.id not in retire)
        yield from add()

    retired = "\n".join(sorted(retire))
    source = Source(read, f"{present.index_hash}\n{added}\n{retired}", origin or present.origin)
    return build_from(source, new, config, workers=workers, tell=tell, parent=Parent(old, kept, present.index_hash))


def _kept_rows(documents: Documents, retire: frozenset[str], old: Path) -> np.ndarray:
    """The rows of what is not retired."""
    ids = documents.ids()
    gone = np.fromiter((id_ in retire for id_ in ids), dtype=bool, count=len(documents))
    if gone.sum() < len(retire):
        missing = sorted(retire - set(documents.ids()))
        raise CorpusRefused(
            f"{len(missing)} of the {len(retire)} documents to retire are not in {old}, for instance {missing[0]!r}"
        )
    return np.flatnonzero(~gone)
