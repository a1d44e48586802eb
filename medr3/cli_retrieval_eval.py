"""`medr3 retrieval eval`: what an index finds of what labelled queries ask for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from medr3.cli_common import Json
from medr3.errors import UserError


def evaluate(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="folder of a built index")],
    queries: Annotated[
        Path, typer.Option(help='JSON lines: {"id", "query", "relevant": {"document": grade}}, and "collection", "subset"')
    ],
    out: Annotated[Path | None, typer.Option(help="folder for eval.json, eval.md and recall.svg")] = None,
    k: Annotated[int, typer.Option(min=1, max=100, help="how many hits count")] = 10,
    sweep: Annotated[bool, typer.Option("--sweep", help="also recall against queries/s over kinds of index")] = False,
    encoder: Annotated[str, typer.Option(help="folder of the encoder's model, where the index was built with one")] = "",
    reranker: Annotated[str, typer.Option(help="folder of a cross-encoder that orders hybrid candidates anew")] = "",
    authority: Annotated[float, typer.Option(min=0, max=1, help="share of the evidence level in hybrid scores")] = 0.0,
    dense_weight: Annotated[float, typer.Option(min=0)] = 1.0,
    lexical_weight: Annotated[float, typer.Option(min=0)] = 1.0,
    as_json: Json = False,
) -> None:
    """Measure nDCG, recall, MRR and latency: dense, lexical and hybrid, by subset of the queries."""
    from dataclasses import replace

    from pydantic import ValidationError

    from medr3.evaluation.retrieval import measure
    from medr3.evaluation.retrieval_effort import plot
    from medr3.evaluation.retrieval_effort import sweep as sweep_efforts
    from medr3.validation import describe_validation
    from retrieval_service.config import RetrievalConfig
    from retrieval_service.identity import config_of
    from retrieval_service.index import HybridIndex
    from retrieval_service.manifest import IndexManifest, IndexRefused
    from retrieval_service.measures import read_labelled
    from retrieval_service.types import UnknownCollection

    fields = {
        "encoder": encoder, "reranker": reranker, "authority_weight": authority, "dense_weight": dense_weight,
        "lexical_weight": lexical_weight,
    }  # fmt: skip
    try:
        config = RetrievalConfig.model_validate({name: value for name, value in fields.items() if value != ""})
        labelled = read_labelled(queries)
        opened = HybridIndex.load(index, config_of(IndexManifest.read(index), config))
        figures = measure(opened, labelled, k)
    except ValidationError as error:
        raise UserError("\n".join(describe_validation(error, RetrievalConfig))) from None
    except (IndexRefused, UnknownCollection, ValueError) as error:
        raise UserError(str(error)) from None
    if figures.unknown_documents:
        wanted = {name for query in labelled for name in query.relevant}
        print(
            f"medr3: {figures.unknown_documents:,} of {len(wanted):,} labelled documents are not in {index}: they can never be found",
            file=sys.stderr,
        )
    if sweep:
        vectors = opened.encoded([query.query for query in labelled])
        figures = replace(figures, effort=sweep_efforts(index, vectors, lambda line: print(line, file=sys.stderr)))
    content = json.dumps(figures.as_dict(), indent=2)
    written = {"eval.json": content + "\n", "eval.md": figures.markdown()}
    if figures.effort:
        written["recall.svg"] = plot(figures.effort)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, text in written.items():
                (out / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    print(content if as_json else figures.markdown(), end="\n" if as_json else "")
