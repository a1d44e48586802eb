"""The large fictional world as a corpus with labelled queries, for trying indexes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medr3.errors import UserError
from retrieval_service.measures import LabelledQuery, write_labelled
from tasks.atlas.config import AtlasConfig
from tasks.atlas.world import QUERY_KINDS, Atlas

LARGEST = 900_000  # documents; the held-out tenth makes it a million
SMALLEST_HELD_OUT = 450  # documents, of which a tenth are distractors
CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"


class Written(NamedTuple):
    documents: int
    queries: int


def write_world(folder: Path, documents: int, queries: int, seed: int) -> Written:
    """Writes the training collection with this many documents, and so many queries of each kind."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is there already: choose another folder")
    atlas = large_world(documents, seed)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / CORPUS).open("w", encoding="utf-8") as lines:
        for document in atlas.documents():
            lines.write(document.model_dump_json(exclude_defaults=True) + "\n")
            count += 1
    labelled = list(world_queries(atlas, queries))
    write_labelled(labelled, folder / QUERIES)
    return Written(count, len(labelled))


def large_world(documents: int, seed: int = 0) -> Atlas:
    """The training collection of a world, of so many documents; a held-out one beside it takes entities of its own."""
    held_out = max(round(documents / 9), SMALLEST_HELD_OUT)
    total = documents + held_out
    training, _ = Atlas.pair(AtlasConfig(documents=total, held_out_share=held_out / total, seed=seed))
    return training


def world_queries(atlas: Atlas, count: int) -> Iterator[LabelledQuery]:
    """Searches for facts: every document that states something of the fact is right, whichever side it takes."""
    for kind in QUERY_KINDS:
        for number, query in enumerate(atlas.queries(kind, count)):
            relevant = dict.fromkeys(query.gold, 1)
            yield LabelledQuery(
                id=f"{kind}/{number}", query=query.text, relevant=relevant, collection=query.collection, subset=kind
            )
