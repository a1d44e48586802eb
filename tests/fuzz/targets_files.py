"""Files of questions, documents, triples and labels, as others publish or write them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medr3.errors import UserError
from retrieval_service.measures import LabelsRefused, read_labelled
from tasks.corpora import Chunking, read_corpus
from tasks.graph.triples import BadRow, Triple, TriplesRefused, read_triples
from tasks.questions import Document, Question
from tasks.reading import Malformed, read
from tasks.rows import FileRefused
from tests.fuzz.mutation import of_bytes, of_json, of_lines, of_text
from tests.fuzz.places import DATA, written
from tests.fuzz.target import Broken, Target

QUESTIONS = DATA / "questions"
MOST_ROWS = 4  # of a sample: short files are changed where it matters
GRAPH = (
    "x_name,display_relation,y_name,x_type,y_type,document,specialty\n"
    "Fabry disease,caused by,GLA,disease,gene,PMID:1,nephrology\nGLA,inhibited by,migalastat,gene,drug,PMID:2,\n"
    '"x, y",treats,"a ""b""",drug,disease,,\n'
)
MRREL = "C0000039|A0016515|AUI|SY|C0000039|A12033592|AUI|permuted_term_of|R28482432||MSH|MSH|||N||\nC1|A1|CUI|RO|C2|A2|CUI||R1||X|X|||N||\n"


def targets() -> list[Target]:
    refuses = (FileRefused,)
    return [
        Target(
            "questions: JSON",
            partial(_samples, ".json"),
            partial(_questions, "any.json"),
            _json_rows,
            refuses,
            0.8,
            samples_refused=True,
        ),
        Target(
            "questions: JSON lines",
            partial(_samples, ".jsonl"),
            partial(_questions, "any.jsonl"),
            of_lines,
            refuses,
            0.8,
            samples_refused=True,
        ),
        Target(
            "questions: CSV",
            partial(_samples, ".csv"),
            partial(_questions, "any.csv"),
            of_text,
            refuses,
            0.8,
            samples_refused=True,
        ),
        Target("questions: gzip", _packed, partial(_questions, "any.jsonl.gz"), of_bytes, refuses, 0.4),
        Target("questions: Parquet", _question_tables, partial(_questions, "any.parquet"), of_bytes, refuses, 0.3),
        Target("questions: Arrow", _question_streams, partial(_questions, "any.arrow"), of_bytes, refuses, 0.3),
        Target("corpus: JSON lines", partial(_corpora, "*.jsonl"), partial(_corpus, "any.jsonl"), of_lines, refuses, 0.8),
        Target("corpus: PubMed XML", partial(_corpora, "*.xml"), partial(_corpus, "any.xml"), of_text, refuses, 0.6),
        Target("corpus: PubMed gzip", _packed_xml, partial(_corpus, "any.xml.gz"), of_bytes, refuses, 0.4),
        Target(
            "corpus: text",
            lambda: [(DATA / "corpora/notes/Anaemia.txt").read_bytes()],
            partial(_corpus, "any.txt"),
            of_text,
            refuses,
            0.6,
        ),
        Target("corpus: Parquet", _document_tables, partial(_corpus, "any.parquet"), of_bytes, refuses, 0.3),
        Target("triples: CSV", lambda: [GRAPH.encode()], partial(_triples, "any.csv"), of_text, (TriplesRefused,), 1),
        Target("triples: TSV", lambda: [_tsv()], partial(_triples, "any.tsv"), of_text, (TriplesRefused,), 0.5),
        Target("triples: MRREL", lambda: [MRREL.encode()], partial(_triples, "MRREL.RRF"), of_text, (TriplesRefused,), 0.5),
        Target(
            "triples: gzip",
            lambda: [gzip.compress(GRAPH.encode())],
            partial(_triples, "any.csv.gz"),
            of_bytes,
            (TriplesRefused,),
            0.4,
        ),
        Target("triples: Parquet", _graph_tables, partial(_triples, "any.parquet"), of_bytes, (TriplesRefused,), 0.3),
        Target(
            "labelled queries",
            _labels,
            lambda case: read_labelled(written(case, "labels.jsonl")),
            of_lines,
            (LabelsRefused,),
            0.8,
        ),
        Target("phrases of relations", _phrases, _read_phrases, of_json, (UserError,), 0.4),
    ]


def _samples(suffix: str) -> list[bytes]:
    """The published layouts and their broken twins, cut to a few rows."""
    paths = [path for path in sorted(QUESTIONS.rglob(f"*{suffix}")) if path.is_file()]
    paths += [DATA / "mirage.json"] if suffix == ".json" else []
    return [_short(path) for path in paths]


def _short(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".json":
        return b"".join(content.splitlines(keepends=True)[: MOST_ROWS + 1])
    try:
        return json.dumps(_cut(json.loads(content))).encode()
    except ValueError:  # broken on purpose, or JSON lines by another name
        return content[:5_000]


def _cut(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_cut(each) for each in tree[: 2 * MOST_ROWS]]
    return {name: _cut(each) for name, each in list(tree.items())[:30]} if isinstance(tree, dict) else tree


def _json_rows(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    """Some samples are broken JSON."""
    try:
        json.loads(sample)
    except ValueError:
        return of_text(rng, sample, samples)
    whole = [each for each in samples if each[:1] in b"[{" and _loads(each)]
    return of_json(rng, sample, whole)


def _loads(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _questions(name: str, case: bytes) -> None:
    for each in read(written(case, name)):
        if isinstance(each, Malformed):
            _one_line(str(each))
        elif not isinstance(each, Question):
            raise Broken(f"read gave {type(each).__name__}")


def _one_line(said: str) -> None:
    if "\n" in said or not said.strip():
        raise Broken(f"not one line: {said[:200]!r}")


def _corpus(name: str, case: bytes) -> None:
    for document in read_corpus(
        written(case, name), chunking=Chunking(size=50, overlap=10), on_malformed=lambda row: _one_line(str(row))
    ):
        if not isinstance(document, Document):
            raise Broken(f"read_corpus gave {type(document).__name__}")
    for _ in read_corpus(written(case, name)):
        pass


def _triples(name: str, case: bytes) -> None:
    for each in read_triples(written(case, name)):
        if isinstance(each, BadRow):
            _one_line(str(each))
        elif not isinstance(each, Triple) or not (each.subject and each.relation and each.object):
            raise Broken(f"a triple without a part: {each}")


def _packed() -> list[bytes]:
    return [gzip.compress(_short(path)) for path in sorted(QUESTIONS.glob("*.jsonl"))[:4]]


def _packed_xml() -> list[bytes]:
    return [gzip.compress(sample) for sample in _corpora("*.xml")]


def _corpora(pattern: str) -> list[bytes]:
    return [_short(path) if path.suffix == ".jsonl" else path.read_bytes() for path in sorted((DATA / "corpora").glob(pattern))]


def _tables(rows: list[dict[str, Any]], write: Callable[[pa.Table, Any], None]) -> bytes:
    sink = io.BytesIO()
    write(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _stream(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _file(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (QUESTIONS / name).read_text().splitlines()[:MOST_ROWS]]


def _question_tables() -> list[bytes]:
    compressed = partial(pq.write_table, compression="zstd")
    return [_tables(_rows("medqa_4_options.jsonl"), pq.write_table), _tables(_rows("medr3.jsonl"), compressed)]


def _question_streams() -> list[bytes]:
    return [_tables(_rows("medqa_4_options.jsonl"), _stream), _tables(_rows("medqa_4_options.jsonl"), _file)]


def _document_tables() -> list[bytes]:
    rows = [
        {"id": f"d{i}", "title": "a", "content": "lowers glucose", "contents": "a. lowers glucose", "year": 2020}
        for i in range(MOST_ROWS)
    ]
    return [_tables(rows, pq.write_table)]


def _graph_tables() -> list[bytes]:
    return [_tables(list(csv.DictReader(io.StringIO(GRAPH))), pq.write_table)]


def _tsv() -> bytes:
    return GRAPH.replace(",", "\t").encode()


def _labels() -> list[bytes]:
    rows = [
        {"id": f"q{i}", "query": "IL-6", "relevant": {"d1": 1, "d2": 2}, "collection": "", "subset": "typo"} for i in range(3)
    ]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode()]


def _phrases() -> list[bytes]:
    return [json.dumps({"caused by": "is caused by", "treats": "is a treatment of"}).encode()]


def _read_phrases(case: bytes) -> None:
    from medr3.synthesis.opening import PHRASES_FILE, open_phrases

    found = open_phrases(written(case, "phrases", PHRASES_FILE).with_name("questions.jsonl"))
    if not all(isinstance(phrase, str) for phrase in found.values()):
        raise Broken("a phrase that is no text")
