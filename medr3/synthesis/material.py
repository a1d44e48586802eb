"""What questions are made of: a graph, the literature behind it, and how both are put into words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medr3.errors import UserError
from tasks.atlas.config import AtlasConfig
from tasks.atlas.language import PHRASES
from tasks.atlas.world import Atlas
from tasks.corpora import read_corpus
from tasks.graph.knowledge import KnowledgeGraph, Statement
from tasks.graph.triples import BadRow, TriplesRefused, read_triples
from tasks.graph.wording import sentence
from tasks.questions import Document
from tasks.rows import FileRefused

COLLECTION = "graph"  # of documents that are written for triples without any


@dataclass
class Material:
    """A graph with its documents. `bad` are the rows that were left out."""

    graph: KnowledgeGraph
    documents: dict[str, Document]
    phrases: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    claims: dict[str, list[Statement]] = field(default_factory=dict)  # what a model read out of free text, by document
    collection: str = ""
    bad: list[BadRow] = field(default_factory=list)


def of_atlas(config: AtlasConfig, *, held_out: bool) -> Material:
    """The large world's own graph and literature."""
    atlas = Atlas.pair(config)[held_out]
    graph, bad = KnowledgeGraph.build(atlas.triples())
    assert not bad, "the world states nothing twice"
    aliases: dict[str, tuple[str, ...]] = {
        entity.name: (second,) for entity in atlas.entities() if (second := atlas.alias(entity))
    }
    return Material(graph, {d.id: d for d in atlas.documents()}, dict(PHRASES), aliases, {}, atlas.collection)


def of_files(triples: Sequence[Path], corpus: Path | None) -> Material:
    """A graph from files. Every triple needs a document: one of the corpus that it names, or one that is written for it."""
    try:
        graph, bad = KnowledgeGraph.build(row for path in triples for row in read_triples(path))
    except TriplesRefused as error:
        raise UserError(f"--triples: {error}") from None
    if not len(graph):
        raise UserError(f"--triples: {triples[0]} holds no usable triple; its first bad row: {bad[0] if bad else 'none'}")
    documents = _corpus(corpus) if corpus else {}
    claims: dict[str, list[Statement]] = {}
    for stated in graph.statements():
        if stated.document in documents:
            claims.setdefault(stated.document, []).append(stated)
        elif corpus and stated.document:
            raise UserError(
                f"--corpus {corpus}: has no document {stated.document!r}, which states {' '.join(stated.triple)!r}: name the corpus"
                " that the triples were taken from"
            )
    return Material(graph, documents | _written(graph, documents), {}, {}, claims, "" if corpus else COLLECTION, bad)


def write_corpus(path: Path, documents: Iterable[Document]) -> int:
    """As JSON lines, one document each; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            fields = document.model_dump(exclude_defaults=True)
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
            count += 1
    return count


def _corpus(path: Path) -> dict[str, Document]:
    try:
        return {document.id: document for document in read_corpus(path)}
    except (FileRefused, OSError) as error:
        raise UserError(f"--corpus: {error}") from None


def _written(graph: KnowledgeGraph, known: dict[str, Document]) -> dict[str, Document]:
    """One document for every name of a document that nobody has, and for every statement without one."""
    lines: dict[str, list[Statement]] = {}
    for edge in range(len(graph)):
        if graph.documents_e[edge] not in known:
            graph.documents_e[edge] = graph.documents_e[edge] or f"{COLLECTION}/{edge:07d}"
            lines.setdefault(graph.documents_e[edge], []).append(graph.statement(edge))
    for node, values in graph.attributes.items():
        for place, stated in enumerate(values):
            if stated.document not in known:
                name = stated.document or f"{COLLECTION}/value-{node:07d}-{place}"
                values[place] = Statement(*stated.triple, name)
                lines.setdefault(name, []).append(values[place])
    return dict(_documents(lines))


def _documents(lines: dict[str, list[Statement]]) -> Iterator[tuple[str, Document]]:
    for name, stated in lines.items():
        text = "\n".join(dict.fromkeys(sentence(each, {}) for each in stated))
        yield name, Document(id=name, text=text, title=stated[0].subject, collection=COLLECTION)
