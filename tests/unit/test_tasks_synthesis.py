"""Questions by the hundred: checked, tried, gone on with after a kill; from the large world, and from files of triples."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medr3.cli import app
from medr3.errors import UserError
from medr3.synthesis.extraction import extract
from medr3.synthesis.gate import IndexSearcher, Reader
from medr3.synthesis.material import Material, of_atlas, of_files
from medr3.synthesis.pipeline import QUESTIONS, REJECTED, Plan, Synthesis
from medr3.synthesis.producing import index_of
from medr3.synthesis.writers import ModelWriter
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.types import SearchQuery, UnknownCollection
from rewards.answers import is_correct
from tasks.atlas.config import AtlasConfig
from tasks.atlas.language import SPECIALTIES
from tasks.graph.knowledge import KnowledgeGraph
from tasks.graph.oracle import is_in_question, solve
from tasks.graph.sampling import Bounds
from tasks.graph.triples import read_triples
from tasks.questions import Document, Question
from tests.judge_server import Answer, with_server

ATLAS = AtlasConfig(documents=4_200)


@pytest.fixture(scope="module")
def material() -> Material:
    return of_atlas(ATLAS, held_out=False)


@pytest.fixture(scope="module")
def index(material: Material, tmp_path_factory: pytest.TempPathFactory) -> HybridIndex:
    return index_of(tmp_path_factory.mktemp("atlas") / "index", material, RetrievalConfig())


class HalfRight:
    """Right on three of four tries wherever the last letter of the id is one of the first eight."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def right(self, questions: Sequence[Question]) -> list[float]:
        self.asked += [question.id for question in questions]
        return [0.75 if question.id[-1] in "01234567" else 0.5 for question in questions]


def made(
    material: Material, folder: Path, plan: Plan, solver: Any = None, **more: Any
) -> tuple[list[Question], dict[str, Any]]:
    summary = asyncio.run(Synthesis(material, plan, folder, solver, **more).run())
    lines = (folder / QUESTIONS).read_text().splitlines()
    return [Question.model_validate_json(line) for line in lines], summary


def test_every_question_is_solved_by_its_documents_and_by_nothing_in_its_text(material: Material, tmp_path: Path) -> None:
    questions, summary = made(material, tmp_path, Plan(60))
    assert len(questions) == summary["questions"] == len({question.text for question in questions}) == 60
    maker = Synthesis(material, Plan(1), tmp_path, None).maker
    for question in questions:
        answer = solve(question, material.documents, material.phrases)
        assert answer is not None and is_correct(question, answer)
        assert not is_in_question(question, maker.common)
        assert question.hops >= 3
    counted = Counter(question.specialty for question in questions)
    assert counted.keys() == set(SPECIALTIES) and max(counted.values()) - min(counted.values()) < 9


def test_what_a_solver_gets_more_than_half_the_time_is_made_anew(material: Material, tmp_path: Path) -> None:
    solver = HalfRight()
    questions, summary = made(material, tmp_path, Plan(24), solver)
    assert len(questions) > 20 and all(question.id[-1] not in "01234567" for question in questions)
    rejected = [json.loads(line) for line in (tmp_path / REJECTED).read_text().splitlines()]
    easy = [line for line in rejected if line["reason"] == "too easy"]
    assert len(easy) == summary["rejected"]["too easy"] == len(solver.asked) - len(questions) > 5
    assert all(line["text"] and line["gold"] for line in easy)


def test_a_reader_with_enough_rounds_is_right_and_with_one_is_not(
    material: Material, index: HybridIndex, tmp_path: Path
) -> None:
    questions, _ = made(material, tmp_path, Plan(12, bounds=Bounds(2, 2)))
    rounds = {count: asyncio.run(Reader(index, material.phrases, count).right(questions)) for count in (1, 4)}
    assert sum(rounds[1]) < sum(rounds[4])


def test_a_run_that_was_killed_goes_on_to_the_very_same_files(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medr3.synthesis.pipeline.SLOTS_AT_ONCE", 10)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    made(material, whole, Plan(24), HalfRight())

    class Killed(Exception):
        pass

    def die(line: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        made(material, killed, Plan(24), HalfRight(), say=die)
    for name in (QUESTIONS, REJECTED):  # what was written after the state is cut off again
        with (killed / name).open("a") as file:
            file.write('{"torn')
    made(material, killed, Plan(24), HalfRight())
    for name in (QUESTIONS, REJECTED):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(UserError, match="was begun with seed 0, not 1"):
        made(material, killed, Plan(24, seed=1), HalfRight())


def chain_csv(folder: Path, documents: bool) -> Path:
    header = "subject,relation,object,subject_type,object_type" + (",document" if documents else "")
    rows = [header]
    for i in range(12):
        row = [f"disease{i},caused by,gene{i},disease,gene", f"gene{i},inhibited by,drug{i},gene,drug"]
        row += [f"drug{i},cleared by,organ{i},drug,organ", f"disease{i},described in,19{50 + i},disease,"]
        rows += [f"{line},d{i}" if documents else line for line in row]
    path = folder / "graph.csv"
    path.write_text("\n".join(rows))
    return path


def test_triples_without_documents_get_some(tmp_path: Path) -> None:
    material = of_files([chain_csv(tmp_path, documents=False)], None)
    questions, _ = made(material, tmp_path / "out", Plan(8, bounds=Bounds(2, 3)))
    assert questions and all(name in material.documents for question in questions for name in question.gold_documents)


def test_triples_of_a_corpus_are_solved_from_its_free_text(tmp_path: Path) -> None:
    graph = chain_csv(tmp_path, documents=True)
    corpus = tmp_path / "corpus.jsonl"
    texts = [
        {
            "id": f"d{i}",
            "text": f"In disease{i} (known since 19{50 + i}), gene{i} is at fault; drug{i}, which organ{i} clears, helps.",
        }
        for i in range(12)
    ]
    corpus.write_text("\n".join(map(json.dumps, texts)))
    material = of_files([graph], corpus)
    questions, _ = made(material, tmp_path / "out", Plan(8, bounds=Bounds(2, 3)))
    assert questions and {name for question in questions for name in question.gold_documents} <= {f"d{i}" for i in range(12)}
    corpus.write_text(json.dumps(texts[0]))
    with pytest.raises(UserError, match="has no document 'd1'"):
        of_files([graph], corpus)


def test_a_model_that_keeps_the_clues_is_taken_at_its_word_and_no_other(material: Material, tmp_path: Path) -> None:
    def reply(number: int, payload: dict[str, Any]) -> Answer:
        case = json.loads(payload["messages"][1]["content"])
        fluent = f"Consider the following. {case['question']} Think well."
        said = [fluent, "Name the drug.", "no JSON at all", None][number % 4]
        return Answer(json.dumps({"question": said})) if said != "no JSON at all" else Answer(said)

    async def write(judge: Any, server: Any) -> tuple[list[Question], Counter[str]]:
        synthesis = Synthesis(material, Plan(12), tmp_path, None)
        writer = ModelWriter(synthesis.maker, judge)
        synthesis = Synthesis(material, Plan(12), tmp_path, None, writer)
        await synthesis.run()
        lines = (tmp_path / QUESTIONS).read_text().splitlines()
        return [Question.model_validate_json(line) for line in lines], writer.counts

    questions, counts = with_server(reply, write, attempts=1)
    fluent = [question for question in questions if question.text.startswith("Consider")]
    assert len(fluent) > 0 and counts["written"] >= len(fluent)
    assert counts["lost a clue"] > 0 and counts["no reply"] > 0
    for question in questions:
        assert solve(question, material.documents, material.phrases) == question.gold


def test_a_model_that_names_what_is_hidden_is_not_taken_at_its_word(material: Material, tmp_path: Path) -> None:
    plain, _ = made(material, tmp_path / "plain", Plan(6))
    golds = " ".join(question.gold for question in plain)

    def reply(number: int, payload: dict[str, Any]) -> Answer:
        return Answer(
            json.dumps({"question": json.loads(payload["messages"][1]["content"])["question"] + f" Is it one of {golds}?"})
        )

    async def write(judge: Any, server: Any) -> Counter[str]:
        writer = ModelWriter(Synthesis(material, Plan(6), tmp_path / "plain", None).maker, judge)
        await Synthesis(material, Plan(6), tmp_path / "told", None, writer).run()
        return writer.counts

    assert with_server(reply, write)["gave it away"] == 6


def test_searches_of_one_moment_go_together_and_fail_by_themselves(index: HybridIndex) -> None:
    async def story() -> list[Any]:
        searcher = IndexSearcher(index)
        queries = [SearchQuery(query=f"caused by mutations {i}", k=2, collection="atlas/train") for i in range(5)]
        found = await asyncio.gather(*map(searcher.search, queries))
        with pytest.raises(UnknownCollection):
            await searcher.search(SearchQuery(query="x", collection="elsewhere"))
        return found

    assert all(len(result.hits) == 2 for result in asyncio.run(story()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler", "max_chian"], "did you mean max_chain"),
        (["--min-hops", "4", "--max-hops", "3"], "--max-hops 3: is below"),
        (["--gate", "endpoint"], "--gate endpoint: name the server"),
        (["--gate", "policy"], "--gate policy: name a model folder"),
        (["--model", "m"], "name the server with --endpoint"),
        (["--endpoint", "nonsense", "--model", "m"], "must begin with http://"),
        (["--documents", "2000"], "raise documents or held_out_share"),
        (["--triples", "/no/such.csv"], "is no file"),
        (["--corpus", "c.jsonl"], "name the triples"),
    ],
)
def test_a_wrong_order_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["data", "synthesize", "--out", str(tmp_path / "out"), *words])
    assert isinstance(result.exception, UserError) and said in str(result.exception) and "\n" not in str(result.exception)


def test_bad_rows_decide_the_exit_code_and_good_ones_are_used(tmp_path: Path) -> None:
    graph = chain_csv(tmp_path, documents=False)
    graph.write_text(graph.read_text() + "\ndisease1,caused by,disease1,disease,disease\n,caused by,x,,\n")
    order = ["data", "synthesize", "--triples", str(graph), "--questions", "4", "--min-hops", "2", "--gate", "none", "--json"]
    refused = CliRunner().invoke(app, [*order, "--out", str(tmp_path / "a")])
    assert refused.exit_code == 1
    kept = (tmp_path / "a" / "bad_rows.txt").read_text().splitlines()
    assert [line.rpartition(", ")[2] for line in kept] == ["row 50: is a self-loop of disease1", "row 51: the subject is blank"]
    assert CliRunner().invoke(app, [*order, "--out", str(tmp_path / "b"), "--allow-bad", "2"]).exit_code == 0
    assert (tmp_path / "b" / "corpus.jsonl").read_text().count("\n") == 48


def test_plans_that_differ_make_other_questions(material: Material, tmp_path: Path) -> None:
    first, _ = made(material, tmp_path / "0", Plan(12))
    second, _ = made(material, tmp_path / "1", replace(Plan(12), seed=1))
    assert not {question.id for question in first} & {question.id for question in second}


def test_a_model_reads_triples_and_only_what_stands_in_the_text_counts(tmp_path: Path) -> None:
    documents = [Document(id=f"d{i}", text=f"disease{i} is caused by gene{i} and not by fate.") for i in range(70)]
    out = tmp_path / "triples.csv"

    def reply(number: int, payload: dict[str, Any]) -> Answer:
        text = json.loads(payload["messages"][1]["content"])["text"]
        if text.startswith("disease3 "):
            return Answer("I cannot.")
        name = text.split()[0].removeprefix("disease")
        true = {"subject": f"disease{name}", "relation": "is caused by", "object": f"gene{name}", "subject_type": "disease"}
        return Answer(json.dumps({"triples": [true, true | {"object": "a gene of another text"}, {"subject": "gene"}]}))

    def read(said: list[str]) -> dict[str, int]:
        return with_server(reply, lambda judge, server: extract(documents, judge.config, out, said.append), attempts=2)

    def die(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_server(reply, lambda judge, server: extract(documents, judge.config, out, die), attempts=1)
    lines: list[str] = []
    assert read(lines) == {"documents": 70, "failed": 1, "not in the text": 69, "triples": 69}
    assert len(lines) == 1  # the first 64 were done before
    graph, bad = KnowledgeGraph.build(read_triples(out))
    assert (len(graph), bad, len(set(graph.documents_e))) == (69, [], 69)


def test_a_reader_of_triples_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    documents = [Document(id=f"d{i}", text="x") for i in range(130)]

    async def story(judge: Any, server: Any) -> None:
        with pytest.raises(UserError, match="gave no triples for 128 documents in a row"):
            await extract(documents, judge.config, tmp_path / "t.csv", lambda line: None)

    with_server(lambda number, payload: Answer(status=400), story)
