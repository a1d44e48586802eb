"""Bodies of literature as they are published: MedRAG's snippets, PubMed's XML, folders of plain text; one document at a time."""

from tasks.corpora.chunking import Chunking, chunks
from tasks.corpora.reading import CORPUS_FORMATS, read_corpus

__all__ = ["CORPUS_FORMATS", "Chunking", "chunks", "read_corpus"]
