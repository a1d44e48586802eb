"""Figures from records: what an evaluation says is what its episodes say, and two results are compared question by question."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.messages import Examined
from medr3.config import RunConfig, load
from medr3.errors import UserError
from medr3.evaluation.comparing import as_text, compare
from medr3.evaluation.datasets import drawn, load_questions
from medr3.evaluation.disputes import Dispute, disputes, disputes_of, rested
from medr3.evaluation.figures import measure
from medr3.evaluation.lookup import with_gold, with_one_search
from medr3.evaluation.results import Asked, Cell, Result, read_result
from medr3.evaluation.settings import Setting, numbers, sweep
from medr3.evaluation.writing import charts, report, write
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.types import SearchQuery, SearchResult
from tasks.config import WorldConfig
from tasks.questions import Question
from tasks.reading import read_questions
from tasks.world import Universe, World

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
MIRAGE = Path(__file__).parents[1] / "data" / "mirage.json"
BLANK = Examined("q", 0, "", False, False, 0.0, "answer", 1, (), (), (), (), 10, 5, None, "1.0", 0.1)


def asked(count: int) -> list[Asked]:
    return [Asked(id=f"q{i}", kind=("text", "choice")[i % 2], source="s", specialty="", hops=1 + i % 2) for i in range(count)]


def result(records: list[Examined], questions: list[Asked], setting: Setting | None = None, **more: Any) -> Result:
    cell = Cell(setting=setting or Setting(), metrics=measure(questions, records, {}, 0), records=records)
    told: dict[str, Any] = {"target": "run", "model": "step 1", "datasets": ["world/joint"], "seed": 0, "index_hash": "abc"}
    return Result(**told, started_at=0.0, wall_s=1.0, questions=questions, cells=[cell], **more)


def test_figures_are_means_over_questions_and_not_over_episodes() -> None:
    questions = asked(2)
    records = [
        replace(BLANK, question_id=f"q{question}", sample=sample, correct=right, exact=right, f1=float(right), confidence=-0.1)
        for question, rights in enumerate([(True, True, True), (True, False, False)])
        for sample, right in enumerate(rights)
    ]
    found = measure(questions, records, {}, 0)
    assert found["accuracy"]["mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["by"]["kind"]["text"]["accuracy"]["mean"] == 1 and found["by"]["hops"]["2"]["n"] == 1
    assert found["by"]["specialty"] == {} and found["disputes"] is None
    assert found["calibration"]["answers"] == 6
    assert found["calibration"]["ece"] == pytest.approx(abs(math.exp(-0.1) - 4 / 6))
    assert found["finishes"] == {"answer": 6} and found["tokens_per_answer"] == {"model": 10, "document": 5}
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="evenly"):
        measure(questions, records[:5], {}, 0)


def test_without_a_known_confidence_nothing_is_said_of_calibration() -> None:
    assert measure(asked(1), [replace(BLANK, question_id="q0")], {}, 0)["calibration"] is None


def test_an_average_over_sources_counts_each_once() -> None:
    questions = [
        Asked(id=f"q{i}", kind="choice", source="mirage/mmlu" if i < 9 else "mirage/medqa", specialty="", hops=1)
        for i in range(10)
    ]
    found = measure(questions, [replace(BLANK, question_id=q.id, correct=q.source == "mirage/mmlu") for q in questions], {}, 0)
    assert found["accuracy"]["mean"] == pytest.approx(0.9)
    assert found["accuracy_mean_of_sources"] == pytest.approx(0.5)


def test_the_world_knows_which_of_two_documents_is_the_better_one() -> None:
    world = World("test", WorldConfig(), held_out=True)
    for question in world.questions("world/joint", 30):
        found = disputes(world, question)
        assert {dispute.better for dispute in found} <= set(question.gold_documents)
        texts = {document.id: document for document in world.documents}
        for dispute in found:
            better = texts[dispute.better]
            for rival in (texts[name] for name in dispute.rivals):
                assert rival.text.split()[:2] == better.text.split()[:2] and rival.text.split()[-2] != better.text.split()[-2]
                assert (better.evidence_level or 9) < (rival.evidence_level or 0)
    universe = Universe.build(WorldConfig(training_worlds=1))
    own = universe.held_out["test"].questions("world/joint", 20)
    other = Question(id="x", text="?", kind="text", gold="y", source="mine", collection="test")
    assert sum(map(len, disputes_of(universe, own).values())) > 5
    assert disputes_of(universe, [other]) == {}


@pytest.mark.parametrize(
    ("retrieved", "cited", "expected"),
    [
        (("d1", "d2"), ("d1",), (1, 1, 1)),
        (("d1", "d2"), ("d2",), (1, 1, 0)),
        (("d1", "d2"), ("d1", "d2"), (1, 1, 0)),  # who restates both has not decided for the better
        (("d1", "d2"), (), (1, 0, 0)),
        (("d1", "d9"), ("d1",), (0, 0, 0)),  # no rival was found
        (("d2", "d3"), ("d2",), (0, 0, 0)),
    ],
)
def test_only_who_had_the_choice_is_counted(retrieved: Any, cited: Any, expected: Any) -> None:
    record = replace(BLANK, retrieved=retrieved, cited=cited)
    assert rested([record], {"q": [Dispute("d1", frozenset({"d2", "d3"}))]}) == expected


def test_a_result_is_read_back_whole(tmp_path: Path) -> None:
    questions = asked(4)
    wrote = result([replace(BLANK, question_id=q.id, cited=("a", "b"), cited_levels=(1, 4)) for q in questions], questions)
    write(tmp_path, wrote)
    assert read_result(tmp_path) == wrote == read_result(tmp_path / "result.json")
    text = (tmp_path / "report.md").read_text()
    assert "accuracy" in text and "level" in text and "![Accuracy](accuracy-by-hops.svg)" in text
    ElementTree.parse(tmp_path / "accuracy-by-hops.svg")


def test_a_sweep_is_drawn_with_one_curve_per_bound() -> None:
    questions = asked(4)
    cells = []
    for setting in sweep("on", None, [1, 3, 5], [0, 2], 1, 0.0):
        cells += result([replace(BLANK, question_id=q.id) for q in questions], questions, setting).cells
    swept = result([replace(BLANK, question_id=q.id) for q in questions], questions).model_copy(update={"cells": cells})
    found = charts(swept)
    assert [series.name for series in found["accuracy-by-top-k"].series] == ["max searches 0", "max searches 2"]
    assert [x for x, _ in found["accuracy-by-max-searches"].series[0].points] == [0.0, 2.0]
    assert report(swept, {}).count("| retrieval on, top-k") == 6
    unbounded = cells[0].model_copy(update={"setting": Setting()})
    mixed = charts(swept.model_copy(update={"cells": [unbounded, *cells]}))
    assert mixed["accuracy-by-top-k"] == found["accuracy-by-top-k"]
    assert "accuracy-by-top-k" not in charts(swept.model_copy(update={"cells": [unbounded, cells[0]]}))


def test_two_results_are_compared_on_the_questions_that_both_have(tmp_path: Path) -> None:
    questions = asked(40)
    a = result([replace(BLANK, question_id=q.id, correct=i < 20) for i, q in enumerate(questions)], questions)
    b = result([replace(BLANK, question_id=q.id, correct=i < 30) for i, q in enumerate(questions[2:], 2)], questions[2:])
    for name, each in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, each)
    found = compare(tmp_path / "a", tmp_path / "b")["pairs"][0]
    assert found["questions"] == 38 and found["only_in_first"] == 2 and found["only_in_second"] == 0
    assert found["mcnemar"] == {"both": 18, "only_first": 0, "only_second": 10, "neither": 10, "p": pytest.approx(2 / 1024)}
    assert found["paired_bootstrap"]["correct"]["difference"]["mean"] == pytest.approx(10 / 38)
    assert found["won"][0] == "q20" and found["lost"] == []
    assert "McNemar, exact: right in the first alone 0, in the second alone 10" in as_text(
        compare(tmp_path / "a", tmp_path / "b")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        ("[]", "must hold one JSON object, not list"),
        ('{"schema_version": 1}', "target: Field required"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=reason) as refused:
        compare(path, path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_settings_keep_to_the_phase_unless_told_otherwise() -> None:
    config = load(DEMO, ["curriculum.phases.1.top_k=7", "curriculum.phases.1.max_searches=2"])
    as_trained = Setting()
    assert as_trained.budget(config, "world/reasoning").retrieval is False
    assert as_trained.budget(config, "world/retrieval") == config.phase_budget(config.curriculum.phases[1])
    assert as_trained.budget(config, "mine").retrieval is True
    swept = Setting(top_k=1, max_searches=0).budget(config, "world/retrieval")
    assert (swept.top_k, swept.max_searches, swept.retrieval) == (1, 0, True)
    closed = Setting(retrieval="closed").budget(config, "world/retrieval")
    assert closed.retrieval is False and closed.forbid_search is True


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("on", None, [], [], 4, 0.0), "add --temperature"),
        (("closed", None, [3], [], 1, 0.0), "nothing is searched"),
        (("oracle", "dense", [], [], 1, 0.0), "nothing is searched"),
        (("once", None, [3], [1], 1, 0.0), "does not search"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(arguments: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        sweep(*arguments)


@pytest.mark.parametrize("text", ["x", "1,,2", "0", "101", "1;2", "-1"])
def test_lists_of_numbers_are_strict(text: str) -> None:
    with pytest.raises(UserError, match="--top-k"):
        numbers("--top-k", text, 1, 100)


class Remembering:
    """A searcher over a real index that remembers what it was asked."""

    def __init__(self, index: HybridIndex) -> None:
        self.index, self.asked = index, []

    async def search(self, query: SearchQuery) -> SearchResult:
        self.asked.append(query)
        return self.index.search([query])[0]


@pytest.fixture(scope="module")
def world_index(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    world = World("test", WorldConfig(entities_per_type=12), held_out=True)
    folder = tmp_path_factory.mktemp("index") / "index"
    HybridIndex.build(world.documents, folder, RetrievalConfig())
    return world, folder


async def _searched_once(questions: list[Question], folder: Path, k: int) -> tuple[list[Question], list[SearchQuery]]:
    searcher = Remembering(HybridIndex.load(folder, RetrievalConfig()))
    found = await with_one_search(questions, searcher, "hybrid", {question.source: k for question in questions})
    return found, searcher.asked


def test_one_search_asks_for_the_question_and_never_for_its_options(world_index: tuple[World, Path]) -> None:
    import asyncio

    questions = list(read_questions(MIRAGE))
    found, queries = asyncio.run(_searched_once(questions, world_index[1], 2))
    assert [query.query for query in queries] == [question.text for question in questions]
    for query, question in zip(queries, questions, strict=True):
        assert not any(option in query.query for option in question.options.values())
    assert all(len(question.context) == 2 for question in found)
    assert [question.model_copy(update={"context": ()}) for question in found] == questions


def test_an_oracle_hands_over_the_gold_documents(world_index: tuple[World, Path]) -> None:
    world, folder = world_index
    questions = world.questions("world/joint", 5) + world.questions("world/reasoning", 5)
    found = with_gold(questions, folder)
    for before, after in zip(questions, found, strict=True):
        if before.context:
            assert after == before
        else:
            assert tuple(document.id for document in after.context) == before.gold_documents
            assert all(document.text.endswith(" .") for document in after.context)
    lost = questions[0].model_copy(update={"gold_documents": ("gone",)})
    with pytest.raises(UserError, match="'gone' is not in the index"):
        with_gold([lost], folder)
    with pytest.raises(UserError, match="1 of 1 questions name no gold documents, the first is"):
        with_gold([questions[0].model_copy(update={"gold_documents": ()})], folder)


def test_a_sample_is_repeatable_and_in_order(tmp_path: Path) -> None:
    questions = [Question(id=f"q{i:03}", text="?", kind="text", gold="x") for i in range(100)]
    found = drawn(questions, 10, 3)
    assert found == drawn(iter(questions), 10, 3) != drawn(questions, 10, 4)
    assert found == sorted(found, key=lambda question: question.id) and len({question.id for question in found}) == 10
    assert drawn(questions, 200, 0) == questions == drawn(questions, None, 0)
    places = [int(question.id[1:]) for seed in range(300) for question in drawn(questions, 10, seed)]
    assert 45 < sum(places) / len(places) < 54  # every part of the file is as likely


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["world/jiont"], "did you mean world/joint"),
        (["nowhere.jsonl"], "No such file"),
        (["mirage:nowhere.json"], "No such file"),
        (["world/joint", "world/joint"], "is in another data set as well"),
    ],
)
def test_a_data_set_that_is_none_is_one_line(names: list[str], reason: str) -> None:
    universe = Universe.build(WorldConfig(training_worlds=1, entities_per_type=12))
    with pytest.raises(UserError, match=reason) as refused:
        load_questions(names, universe, 5, 0)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="--questions 100000"):
        load_questions(["world/joint"], universe, 100_000, 0)


def test_the_demo_configuration_is_one_to_evaluate_under() -> None:
    assert isinstance(load(DEMO, []), RunConfig)
