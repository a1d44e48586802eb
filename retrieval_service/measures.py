"""How good an order is against labels. Every figure is per query, so that whoever reports it can say how sure it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval_service.types import LONGEST_QUERY

Grades = Mapping[str, int]
SHOWN_CHARACTERS = 300  # of what is wrong with a line


class LabelledQuery(BaseModel):
    """A query and the documents that answer it. `subset` names a kind of query that is reported by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    query: str = Field(min_length=1, max_length=LONGEST_QUERY)
    relevant: dict[str, int] = Field(min_length=1, description="document id → grade, from 1")
    collection: str = ""
    subset: str = ""


class LabelsRefused(ValueError):
    """A file of labelled queries that cannot be used; the text names file, line and reason."""


class Quality(NamedTuple):
    """Of one query's answer, each from 0 to 1."""

    ndcg: float
    recall: float
    mrr: float


def quality(found: Sequence[str], relevant: Grades, k: int) -> Quality:
    """nDCG@k, recall@k and the reciprocal rank of the first right document within k.

    nDCG@k = DCG / the DCG of the best order,  DCG = Σ_{i ≤ k} grade_i / log2(i + 1)

    Example:
        >>> quality(["x", "a"], {"a": 1}, 10)
        Quality(ndcg=0.6309297535714575, recall=1.0, mrr=0.5)
    """
    gains = [relevant.get(name, 0) for name in found[:k]]
    best = sorted(relevant.values(), reverse=True)[:k]
    right = [place for place, gain in enumerate(gains, start=1) if gain > 0]
    return Quality(_dcg(gains) / _dcg(best), len(right) / len(relevant), 1 / right[0] if right else 0.0)


def _dcg(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(place + 1) for place, gain in enumerate(gains, start=1)))


def read_labelled(path: Path) -> list[LabelledQuery]:
    """Queries from JSON lines: {"id": …, "query": …, "relevant": {"document": grade}, "collection": "", "subset": ""}."""
    queries: list[LabelledQuery] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    queries.append(LabelledQuery.model_validate_json(line))
                except ValidationError as error:
                    first = error.errors(include_url=False)[0]
                    where = ".".join(map(str, first["loc"]))
                    said = " ".join(f"{f'{where}: ' if where else ''}{first['msg']}".split())[:SHOWN_CHARACTERS]
                    raise LabelsRefused(f"{path}, line {number}: {said}") from None
    except OSError as error:
        raise LabelsRefused(f"{path}: {error.strerror}: name a file of labelled queries") from None
    if not queries:
        raise LabelsRefused(f"{path}: is empty: write one labelled query per line, as JSON")
    return queries


def write_labelled(queries: Iterable[LabelledQuery], path: Path) -> None:
    path.write_text("".join(json.dumps(query.model_dump()) + "\n" for query in queries), encoding="utf-8")
