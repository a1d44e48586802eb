"""Measuring an index: the figures against another implementation of them, and the command against its own files."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from medr3.evaluation.retrieval import Figures, measure
from medr3.evaluation.retrieval_effort import plot, sweep
from medr3.evaluation.retrieval_world import large_world, world_queries
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.measures import LabelledQuery, LabelsRefused, quality, read_labelled, write_labelled
from retrieval_service.vectors import stored
from tasks.questions import Document

ROOT = Path(__file__).parents[2]
names = st.lists(st.sampled_from("abcdefghijklmnop"), unique=True, max_size=14)
CONFIG = RetrievalConfig(dimensions=64)


@given(
    names, st.dictionaries(st.sampled_from("abcdefghijklmnopqrst"), st.integers(1, 3), min_size=1), st.sampled_from([1, 5, 10])
)
def test_figures_are_those_of_trec_eval(found: list[str], relevant: dict[str, int], k: int) -> None:
    evaluator = pytrec_eval.RelevanceEvaluator({"q": relevant}, {f"ndcg_cut.{k}", f"recall.{k}", "recip_rank"})
    run = {name: 1.0 / (place + 1) for place, name in enumerate(found[:k])}
    theirs = evaluator.evaluate({"q": run}).get("q", {f"ndcg_cut_{k}": 0.0, f"recall_{k}": 0.0, "recip_rank": 0.0})
    ours = quality(found, relevant, k)
    assert ours == pytest.approx((theirs[f"ndcg_cut_{k}"], theirs[f"recall_{k}"], theirs["recip_rank"]), abs=1e-6)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "index"
    rng = random.Random(0)
    documents = [Document(id=f"d{i}", text=f"finding {i} of {rng.choice(['liver', 'heart'])}") for i in range(400)]
    HybridIndex.build(documents, folder, CONFIG)
    return folder


def labelled() -> list[LabelledQuery]:
    return [
        LabelledQuery(id=f"q{i}", query=f"finding {i}", relevant={f"d{i}": 1}, subset="even" if i % 2 == 0 else "odd")
        for i in range(40)
    ]


@pytest.fixture(scope="module")
def figures(built: Path) -> Figures:
    return measure(HybridIndex.load(built, CONFIG), labelled(), 10)


def test_every_mode_is_measured_on_every_subset(figures: Figures) -> None:
    assert {(cell.mode, cell.subset): cell.queries for cell in figures.cells} == {
        (mode, subset): 40 if subset == "all" else 20
        for mode in ("dense", "lexical", "hybrid")
        for subset in ("all", "even", "odd")
    }
    lexical = next(cell for cell in figures.cells if (cell.mode, cell.subset) == ("lexical", "all"))
    assert lexical.ndcg == (1.0, 1.0, 1.0), "each number stands in one document"
    by_cell = {(cell.mode, cell.subset): cell.ndcg.mean for cell in figures.cells}
    for subset, gains in figures.gains.items():
        for half, gain in gains.items():
            assert gain.difference.mean == pytest.approx(by_cell["hybrid", subset] - by_cell[half, subset])
    assert all(0 < speed.p50_ms <= speed.p99_ms and speed.per_second > 0 for speed in figures.speeds)
    assert json.loads(json.dumps(figures.as_dict()))["cells"][0]["ndcg"].keys() == {"mean", "low", "high"}


def test_documents_that_nobody_can_find_are_counted(built: Path) -> None:
    lost = LabelledQuery(id="x", query="finding", relevant={"nobody": 1, "d1": 1})
    assert measure(HybridIndex.load(built, CONFIG), [lost], 10).unknown_documents == 1


def test_the_sweep_knows_exact_search_and_draws_what_it_measured(built: Path) -> None:
    queries = stored(built)[:50]
    points = sweep(built, np.ascontiguousarray(queries), lambda line: None)
    exact = [point for point in points if point["effort"] == "exact"]
    assert [(point["factory"], point["recall"]) for point in exact] == [("Flat", 1.0)]
    lists = [point for point in points if point["factory"].endswith(",SQ8") and point["effort"].startswith("nprobe")]
    assert lists[0]["recall"] < lists[-1]["recall"] and lists[-1]["recall"] == 1.0
    drawn = plot(points)
    assert drawn.startswith("<svg") and all(point["factory"] in drawn for point in points)
    assert drawn.count("<polyline") == len({point["factory"] for point in points})
    four = plot([{"factory": f"kind {i}", "recall": 0.9, "per_second": 1.0} for i in range(4)])
    assert all(f'"curve c{place}"' in four for place in range(4)), "every kind has a colour of its own"


def test_queries_of_the_large_world_come_in_three_kinds_and_name_documents_that_are_there() -> None:
    world = large_world(2_000)
    ids = {document.id for document in world.documents()}
    queries = list(world_queries(world, 20))
    assert [query.subset for query in queries] == ["plain"] * 20 + ["alias"] * 20 + ["typo"] * 20
    assert all(query.relevant.keys() <= ids for query in queries) and len({query.id for query in queries}) == 60
    assert len(ids) == 2_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty: write one labelled query per line"),
        ('{"id": "a", "query": "x", "relevant": {"d": 1}}\n{"id"', "line 2: Invalid JSON"),
        ('{"id": "a", "query": "x", "relevant": {}}', "line 1: relevant: Dictionary should have at least 1 item"),
        ('{"id": "a", "query": "", "relevant": {"d": 1}}', "line 1: query: String should have at least 1 character"),
    ],
)
def test_a_bad_label_is_named_with_its_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(content)
    with pytest.raises(LabelsRefused) as refused:
        read_labelled(path)
    assert reason in str(refused.value) and str(path) in str(refused.value)


def medr3(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "medr3.cli", "retrieval", *arguments],
        capture_output=True, text=True, cwd=cwd, env=environment, check=False,
    )  # fmt: skip


def test_the_command_writes_what_it_measured(built: Path, tmp_path: Path) -> None:
    write_labelled(labelled(), tmp_path / "queries.jsonl")
    done = medr3("eval", str(built), "--queries", "queries.jsonl", "--out", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "figures" / "eval.json").read_text())
    assert content["documents"] == 400 and len(content["cells"]) == 9
    assert done.stdout == (tmp_path / "figures" / "eval.md").read_text()
    assert re.search(r"\| all \| lexical \| 40 \| 1\.0000 ", done.stdout)
    wrong = medr3("eval", str(tmp_path), "--queries", "queries.jsonl", cwd=tmp_path)
    assert wrong.returncode == 2
    assert (
        wrong.stderr
        == f"medr3: {tmp_path} is not an index: cannot read manifest.json (No such file or directory); build it first\n"
    )
