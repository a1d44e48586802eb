"""First episodes: a teacher that really searches, filters that really reject, rows that the learner really learns from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from typer.testing import CliRunner

from actors.teaching.filters import FilterRules, executed_calls, fault
from actors.teaching.guidance import MASK, guided
from actors.teaching.noise import FAILURES, ToolNoise
from actors.teaching.oracle import OraclePolicy, Step
from actors.teaching.retelling import by_steps
from learner.config import LearnerConfig
from medr3.cli import app
from medr3.errors import UserError
from medr3.evaluation.endpoint import EndpointConfig
from medr3.evaluation.written import WrittenText
from medr3.run.imitation import imitate, read_episodes, sft_settings
from medr3.synthesis.gate import IndexSearcher
from medr3.synthesis.material import Material, of_atlas
from medr3.synthesis.pipeline import QUESTIONS, Plan, Synthesis
from medr3.synthesis.producing import index_of
from medr3.synthesis.teaching import REJECTED, Lesson, School, teach
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from tasks.atlas.config import AtlasConfig
from tasks.config import ColdStartConfig
from tasks.graph.knowledge import Statement
from tasks.open_ended import as_open
from tasks.prompting import question_prompt
from tasks.questions import Question
from tasks.tokenizer import load_tokenizer
from tests.student import student_model, student_tokenizer
from trajectories.schema import EPISODE_SCHEMA, Episode, Search, Segment, Source, check

CALM = Lesson(noise=ToolNoise(0.0, 0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coldstart")


@pytest.fixture(scope="module")
def material() -> Material:
    return of_atlas(AtlasConfig(documents=4_200), held_out=False)


@pytest.fixture(scope="module")
def index(material: Material, folder: Path) -> HybridIndex:
    return index_of(folder / "index", material, RetrievalConfig())


@pytest.fixture(scope="module")
def questions(material: Material, folder: Path) -> list[Question]:
    asyncio.run(Synthesis(material, Plan(14), folder / "made", None).run())
    return [Question.model_validate_json(line) for line in (folder / "made" / QUESTIONS).read_text().splitlines()]


@pytest.fixture(scope="module")
def student(folder: Path, material: Material) -> Path:
    return student_tokenizer(folder / "student", [document.text for document in list(material.documents.values())[:500]], 1_500)


def searching(index: HybridIndex) -> Callable[[], Any]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[IndexSearcher]:
        yield IndexSearcher(index)

    return opened


def rows_of(out: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    assert all(table.schema.equals(EPISODE_SCHEMA) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def taught(
    questions: list[Question], material: Material, index: HybridIndex, student: Path, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lesson = Lesson(top_k=8, noise=ToolNoise(0.5, 0.3))
    school = School(questions, material.phrases, student, folder / "oracle", lesson)
    summary = teach(school, searching(index), lambda line: None)
    return rows_of(folder / "oracle"), summary


def test_the_oracles_episodes_are_right_and_made_of_real_searches(
    taught: tuple[list[dict[str, Any]], dict[str, Any]], questions: list[Question], student: Path, index: HybridIndex
) -> None:
    rows, summary = taught
    assert len(rows) == summary["episodes"] >= len(questions) // 2
    assert summary["calls_mean"] >= 4
    tokenizer = load_tokenizer(student)
    asked = {question.id: question for question in questions}
    for row in rows:
        assert not check(row) and row["temperature"] == 1.0  # which the learner divides by
        question = asked[row["question_id"]]
        text = tokenizer.decode(row["token_ids"])
        assert text.startswith(f"user: {question_prompt(question)}\nassistant: <think>")
        assert text.endswith("</answer>") and row["text"] in text
        found = {name for search in row["searches"] for name in search["document_ids"]}
        assert set(row["searches"][0]["document_ids"]) and found & set(question.gold_documents)
        real = {search["index_hash"] for search in row["searches"] if search["documents"][0] not in FAILURES}
        assert real == {index.index_hash}


def test_loss_is_on_the_teachers_words_and_on_no_document(
    taught: tuple[list[dict[str, Any]], dict[str, Any]], student: Path
) -> None:
    tokenizer = load_tokenizer(student)
    for row in taught[0][:5]:
        learned = tokenizer.decode([token for token, own in zip(row["token_ids"], row["loss_mask"], strict=True) if own])
        assert learned.count("<search>") == len(row["searches"]) and "<answer>" in learned
        assert "<document>" not in learned and "user:" not in learned


def test_some_episodes_meet_failing_searches_and_go_on(taught: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    rows, summary = taught
    failed = [row for row in rows if any(text in FAILURES for search in row["searches"] for text in search["documents"])]
    assert len(failed) == summary["with_failed_calls"] > 0
    for row in failed:
        queries = [search["query"] for search in row["searches"]]
        assert len(set(queries)) == len(queries)  # it was searched again in other words
        assert row["searches"][-1]["documents"][0] not in FAILURES


def test_per_step_rows_teach_each_turn_once(
    questions: list[Question], material: Material, index: HybridIndex, student: Path, folder: Path
) -> None:
    pair = questions[:6]
    for name, per_step in (("whole", False), ("steps", True)):
        lesson = replace(CALM, per_step=per_step, top_k=8)
        teach(School(pair, material.phrases, student, folder / name, lesson), searching(index), lambda line: None)
    whole, steps = rows_of(folder / "whole"), rows_of(folder / "steps")
    assert not any(check(row) for row in steps)
    assert sum(sum(row["loss_mask"]) for row in steps) == sum(sum(row["loss_mask"]) for row in whole)
    assert len(steps) == sum(len(row["searches"]) + 1 for row in whole)


def test_a_course_that_was_killed_goes_on_and_another_is_refused(
    questions: list[Question],
    material: Material,
    index: HybridIndex,
    student: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medr3.synthesis.teaching.QUESTIONS_AT_ONCE", 3)
    once, twice = (School(questions[:6], material.phrases, student, folder / name, CALM) for name in ("once", "twice"))
    expected = teach(once, searching(index), lambda line: None)

    def die(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(twice, searching(index), die)
    assert teach(twice, searching(index), lambda line: None) == expected
    told = [[(row["episode_id"], row["token_ids"]) for row in rows_of(folder / name)] for name in ("once", "twice")]
    assert told[0] == told[1]
    with pytest.raises(UserError, match="was begun with lesson"):
        teach(replace(twice, lesson=replace(CALM, top_k=2)), searching(index), lambda line: None)


Turn = Callable[[int, str], web.StreamResponse]


def completion(text: str) -> web.StreamResponse:
    choice = {"text": text, "finish_reason": "stop", "logprobs": None}
    return web.json_response({"choices": [choice], "usage": {"completion_tokens": 20}})


def by_endpoint(turn: Turn, school: School, index: HybridIndex, **settings: Any) -> tuple[dict[str, object], list[str]]:
    """A course against a real HTTP server; also what the server was asked."""
    prompts: list[str] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        prompts.append((await request.json())["prompt"])
        return turn(len(prompts) - 1, prompts[-1])

    async def story() -> dict[str, object]:
        app = web.Application()
        app.router.add_post("/v1/completions", complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = "http://{}:{}/v1".format(*runner.addresses[0][:2])
        endpoint = EndpointConfig.model_validate({"url": url, "model": "m", "attempts": 2} | settings)
        try:
            course = replace(school, endpoint=endpoint)
            return await asyncio.to_thread(teach, course, searching(index), lambda line: None)
        finally:
            await runner.cleanup()

    return asyncio.run(story()), prompts


def test_an_endpoint_teaches_by_searching_and_its_hint_is_never_learned(
    questions: list[Question], material: Material, index: HybridIndex, student: Path, tmp_path: Path
) -> None:
    asked = {question.text: question for question in questions[:3]}

    def turn(number: int, prompt: str) -> web.StreamResponse:
        if number == 0:
            return web.Response(status=503)  # tried again
        question = next(question for text, question in asked.items() if text in prompt)
        searches = prompt.rpartition(question.text)[2].count("<search>")
        gold = question.gold_documents
        if searches < 3:
            opening = "<think> first " if not searches else " then "
            return completion(f"{opening}<search> {material.documents[gold[searches]].title} {searches} ")
        quoted = f"{MASK} helps. " if question is questions[1] else ""
        answer = "nobody knows" if question is questions[2] else question.gold
        return completion(f"{quoted}so </think> <answer> {answer} ")

    school = School(questions[:3], material.phrases, student, tmp_path, CALM)
    summary, prompts = by_endpoint(turn, school, index)
    assert summary["episodes"] == 1 and summary["rejected"] == {"quotes the hint": 1, "wrong answer": 1}
    assert all(MASK in prompt for prompt in prompts)
    (row,) = rows_of(tmp_path)
    text = load_tokenizer(student).decode(row["token_ids"])
    assert MASK not in text and "A way that may lead" not in text and text.count("<search>") == 3
    assert not check(row)
    reasons = [json.loads(line) for line in (tmp_path / REJECTED).read_text().splitlines()]
    assert {each["question"] for each in reasons} == {questions[1].id, questions[2].id}


def test_an_endpoint_that_is_gone_ends_the_course_in_one_line(
    questions: list[Question],
    material: Material,
    index: HybridIndex,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medr3.evaluation.endpoint.FIRST_PAUSE_S", 0.0)
    school = School(questions[:10], material.phrases, student, tmp_path, CALM)
    with pytest.raises(UserError, match=r"8 questions in a row failed.*goes on from there"):
        by_endpoint(lambda number, prompt: web.Response(status=500), school, index)


def test_the_oracle_takes_nothing_for_true_that_stronger_evidence_denies() -> None:
    wanted = Statement("GLA", "inhibited by", "Lomab", "")
    step = Step(("GLA is inhibited by", "more"), wanted)
    oracle = OraclePolicy(WrittenText(), {})
    weak, strong = ("A case series of 9.\nGLA is inhibited by {}.", "A meta-analysis of 9.\nGLA is inhibited by {}.")
    assert "strongest of them is a meta-analysis" in oracle._reads(step, [weak.format("Other"), strong.format("Lomab")])
    assert oracle._reads(step, [weak.format("Lomab")]) == "GLA is inhibited by Lomab."
    for texts in ([weak.format("Lomab"), strong.format("Other")], [strong.format("Other")], ["GBA is inhibited by Lomab."], []):
        assert oracle._reads(step, texts) == "That did not bring it, so I search in other words."


def episode(**changes: Any) -> Episode:
    segments = [Segment(Source.PROMPT, 0, 1, -1), *(Segment(Source.MODEL, 1 + i, 2 + i, i) for i in range(3))]
    searches = [Search(turn, f"q{turn}", ["d"], ["text"], [1.0], [1], "h", 1.0) for turn in range(2)]
    found = "<document> text </document>"
    text = f"<think> a <search> q0 </search> {found} b <search> q1 </search> {found} c </think> <answer> 42 </answer>"
    fields = {"segments": segments, "searches": searches, "text": text, "answer": "42", "finish": "answer"} | changes
    return Episode(
        "r", "g", "e", "q", 0, "p", "s", "number", [1, 2, 3, 4], [False, True, True, True], [0.0] * 4, versions=[], **fields
    )


ASKED = Question(id="q", text="?", kind="number", gold="42", lower=42, upper=42)
ANSWERED = "<answer> 42 </answer>"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("", {}),
        ("no answer", {"answer": " "}),
        ("malformed", {"finish": "malformed"}),
        ("wrong answer", {"answer": "43"}),
        ("quotes the hint", {"text": f"<think> {MASK} </think> {ANSWERED}"}),
        ("repeated call", {"searches": [Search(t, q, ["d"], ["x"], [1.0], [1], "h", 1.0) for t, q in enumerate(("Q 1", "q  1"))]}),
        ("too few turns", {"segments": [Segment(Source.PROMPT, 0, 1, -1), Segment(Source.MODEL, 1, 4, 0)]}),
        ("too many calls", {"searches": [Search(t, f"q{t}", ["d"], ["x"], [1.0], [1], "h", 1.0) for t in range(11)]}),
        ("no valid tool response", {"searches": [replace(search, degraded=True) for search in episode().searches]}),
        ("ends on a failed call", {"searches": [*episode().searches, Search(2, "q2", ["f"], [FAILURES[0]], [0.0], [0], "", 1.0)]}),
    ],
)  # fmt: skip
def test_each_filter_rejects_what_it_is_for(reason: str, changes: dict[str, Any]) -> None:
    assert fault(episode(**changes), ASKED, FilterRules()) == reason


def test_long_episodes_are_left_out_and_failed_calls_not_counted() -> None:
    assert fault(episode(), ASKED, FilterRules(max_tokens=3)) == "too long"
    failing = replace(episode().searches[0], query="again", documents=[FAILURES[1]])
    assert executed_calls(episode(searches=[*episode().searches, failing])) == 2
    assert by_steps(episode())[0].searches == []


def test_guidance_names_relations_and_no_entity(questions: list[Question], material: Material) -> None:
    for question in questions:
        told = guided(question, material.phrases, hint=True).text.removesuffix(question.text)
        assert told.count(MASK) == 2 * len(question.reference_graphs[0])
        assert not any(name in told for edge in question.reference_graphs[0] for name in (edge[0], edge[2]))
        assert MASK not in guided(question, material.phrases, hint=False).text


@pytest.mark.parametrize(
    ("text", "options", "opened"),
    [
        ("What causes Fabry disease?", {"A": "GLA.", "B": "GBA"}, "GLA"),
        ("Which of the following causes it?", {"A": "GLA", "B": "GBA"}, None),
        ("All are true of it except:", {"A": "GLA", "B": "GBA"}, None),
        ("What helps?", {"A": "Aspirin", "B": "All of the above"}, None),
        ("What helps?", {"A": "A and B", "B": "rest"}, None),
        ("What helps?", {"A": "Aspirin", "B": "Low-dose aspirin"}, None),
        ("Is aspirin a drug?", {"A": "Aspirin", "B": "no"}, None),
    ],
)
def test_choices_become_open_only_where_the_answer_stands_alone(text: str, options: dict[str, str], opened: str | None) -> None:
    asked = Question(id="q", text=text, kind="choice", gold="A", options=options)
    found = as_open(asked)
    assert (found.gold if found else None) == opened
    assert found is None or (found.kind == "text" and not found.options and found.id == "q/open")


def test_the_learners_own_trainer_imitates_the_files(
    taught: tuple[list[dict[str, Any]], dict[str, Any]], student: Path, folder: Path
) -> None:
    model, few = student_model(student), folder / "few.parquet"
    pq.write_table(pq.read_table(sorted((folder / "oracle").glob("*.parquet"))[0]).slice(0, 4), few)  # 3,000 tokens each
    settings = ColdStartConfig(episodes=(str(few),), batch_size=1, epochs=2, learning_rate=1e-2)
    config = LearnerConfig(algorithm="ppo", cpu_threads=1)
    lines = list(imitate(model, settings, config, 0, folder / "imitated"))
    report = json.loads((folder / "imitated" / "cold_start.json").read_text())
    assert report["held_out_loss"] < report["held_out_loss_before"] - 0.3, lines
    assert load_tokenizer(folder / "imitated").encode("a") == load_tokenizer(student).encode("a")
    assert sft_settings(config).algorithm == "sft" and sft_settings(config).advantage is None


def test_files_without_episodes_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    for path, said in ((tmp_path / "x.parquet", "no episodes"), (tmp_path / "none", "no episodes"), (tmp_path, "no episodes")):
        with pytest.raises(UserError, match=said) as refused:
            read_episodes([path])
        assert "\n" not in str(refused.value)


def test_a_wrong_order_is_one_line(folder: Path, questions: list[Question], student: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(ASKED.model_dump_json(exclude_defaults=True))
    asked = folder / "made" / QUESTIONS
    out = ["--out", str(tmp_path / "out")]
    for words, said in (
        ([str(asked), "--student", str(tmp_path), *out], "--student"),
        ([str(plain), "--student", str(student), *out], "no reference graph"),
        ([str(asked), "--student", str(student), *out], "no corpus to build one from"),
        ([str(tmp_path / "none.jsonl"), "--student", str(student), *out], "none.jsonl"),
        ([str(asked), "--student", str(student), *out, "--model", "m"], "name the server with --endpoint"),
    ):
        result = CliRunner().invoke(app, ["data", "coldstart", *words])
        assert isinstance(result.exception, UserError) and said in str(result.exception), result.output
        assert "\n" not in str(result.exception)
