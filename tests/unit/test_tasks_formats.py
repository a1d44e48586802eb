"""Every published format: files in its exact layout become questions, and broken twins of them are named row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards.answers import is_correct
from tasks.formats import FORMATS, NAMES
from tasks.questions import AnswerKind, Question
from tasks.reading import Dataset, Malformed, read, read_questions
from tasks.rows import FileRefused

DATA = Path(__file__).parents[1] / "data" / "questions"
BROKEN = DATA / "broken"
# file, format, questions, and of the first question: kind, gold, and what its text begins and ends with
FILES = (
    ("medqa_4_options.jsonl", "medqa", 2, "choice", "B", ("A 24-year-old", "be given?")),
    ("medqa_5_options.jsonl", "medqa", 2, "choice", "B", ("A 24-year-old", "be given?")),
    ("medmcqa.json", "medmcqa", 2, "choice", "C", ("Which nerve", "the diaphragm?")),
    ("ori_pqal.json", "pubmedqa", 3, "choice", "A", ("Does ferritin", "oral iron?")),
    ("anatomy_test.csv", "mmlu", 2, "choice", "A", ("Which bone", "middle ear?")),
    ("bioasq.json", "bioasq", 2, "choice", "A", ("Does dupilumab", "interleukin 4?")),
    ("medxpertqa_text.jsonl", "medxpertqa", 2, "choice", "B", ("A 30-year-old", "the cause?")),
    ("medcalc.csv", "medcalc", 4, "number", "67.00495", ("A 53-year-old", "in mL/min?")),
    ("medical_o1_verifiable_problem.json", "medical-o1", 2, "text", "Streptococcus pyogenes", ("A child", "the cause?")),
    ("RDS.json", "rarearena", 2, "text", "Fabry disease", ("A 9-year-old", "most likely diagnosis?")),
    (
        "RDC.json",
        "rarearena",
        1,
        "text",
        "Fabry disease",
        ("A 9-year-old", "absent. Which rare disease is the most likely diagnosis?"),
    ),
    ("EHRNoteQA.jsonl", "ehrnoteqa", 1, "choice", "C", ("Which antibiotic", "infection?")),
    ("EHRNoteQA_processed.jsonl", "ehrnoteqa", 1, "choice", "C", ("Which antibiotic", "infection?")),
    ("mediq_all_dev_good.jsonl", "mediq", 1, "choice", "C", ("A 64-year-old", "Which vaccine would have protected her?")),
    ("hotpot_dev_distractor.json", "hotpotqa", 1, "text", "penicillin", ("Which drug", "Lochfield?")),
    ("2wiki_dev.json", "2wiki", 1, "text", "penicillin", ("Which drug", "Lochfield?")),
    ("musique_ans_dev.jsonl", "musique", 1, "text", "penicillin", ("What did", "discover?")),
    ("medr3.jsonl", "medr3", 2, "text", "metformin", ("Which drug", "glucose?")),
)


@pytest.mark.parametrize(("name", "format_", "count", "kind", "gold", "ends"), FILES, ids=[each[0] for each in FILES])
def test_a_published_layout_is_recognised(
    name: str, format_: str, count: int, kind: str, gold: str, ends: tuple[str, str]
) -> None:
    questions = list(read_questions(DATA / name))
    first = questions[0]
    assert len(questions) == count and (first.kind.value, first.gold) == (kind, gold)
    assert first.text.startswith(ends[0]) and first.text.endswith(ends[1])
    assert questions == list(read_questions(DATA / name, format_)), "named or recognised, it is the same"
    if format_ != "medr3":
        assert all(each.id.startswith(f"{format_}/") and each.source == format_ for each in questions)
        assert all(each.provenance[0].origin.startswith(f"{name}, line ") for each in questions)
    assert len({each.id for each in questions}) == count
    assert all(is_correct(each, each.gold) for each in questions), "what is gold earns the reward"


def test_every_format_has_its_file() -> None:
    assert {each[1] for each in FILES} | {"mirage", "medical-o1-sft"} == set(NAMES)
    assert len({(each.name, each.title) for each in FORMATS}) == len(FORMATS)


def one(name: str, index: int = 0, **more: Any) -> Question:
    return list(read_questions(DATA / name, **more))[index]


def test_five_options_and_four() -> None:
    assert list(one("medqa_4_options.jsonl").options) == list("ABCD")
    assert list(one("medqa_5_options.jsonl").options) == list("ABCDE")


def test_dates_and_spans_of_medcalc() -> None:
    due, age, excess = (one("medcalc.csv", index) for index in (1, 2, 3))
    assert (due.kind, due.gold, due.lower) == (AnswerKind.NUMBER, "2000-12-02", None), "the month stands first"
    assert is_correct(due, "December 2, 2000") and not is_correct(due, "2000-02-12")
    assert (age.kind, age.gold) == (AnswerKind.TEXT, "34 weeks 3 days")
    assert is_correct(age, "34 weeks and 3 days") and not is_correct(age, "33 weeks and 4 days")
    assert (excess.lower, excess.upper) == (-2.205, -1.995) and is_correct(excess, "-2") and not is_correct(excess, "2.1")


def test_a_disease_has_its_orphanet_name_as_well() -> None:
    assert is_correct(one("RDS.json"), "Anderson-Fabry disease")
    assert one("RDS.json").id == "rarearena/rds/9990001-1" and one("RDC.json").id == "rarearena/rdc/9990001-1"


def test_reference_graphs_and_gold_documents_of_multihop_questions() -> None:
    two_wiki, musique, hotpot = one("2wiki_dev.json"), one("musique_ans_dev.jsonl"), one("hotpot_dev_distractor.json")
    assert two_wiki.reference_graphs == (
        (("Lochfield", "birthplace of", "Alexander Fleming"), ("Alexander Fleming", "discovered", "penicillin")),
    )
    assert musique.reference_graphs == (
        (
            ("Lochfield", "birthplace of", "Alexander Fleming"),
            ("Alexander Fleming", "What did Alexander Fleming discover?", "penicillin"),
        ),
    )
    for question in (two_wiki, musique, hotpot):
        assert question.gold_documents == ("Alexander Fleming", "Penicillin") and question.hops == 2


def test_context_is_handed_over_where_it_is_asked_for_or_cannot_be_looked_up() -> None:
    assert not one("ori_pqal.json").context and one("ori_pqal.json").gold_documents == ("PMID:99900001",)
    assert [(each.title, each.text) for each in one("ori_pqal.json", with_context=True).context] == [
        ("BACKGROUND", "Iron deficiency is common."), ("RESULTS", "Of 120 women 88 responded."),
    ]  # fmt: skip
    assert [each.id for each in one("hotpot_dev_distractor.json", with_context=True).context] == [
        "Alexander Fleming",
        "Penicillin",
        "Aspirin",
    ]
    assert one("EHRNoteQA_processed.jsonl").context[0].text.endswith("nitrofurantoin for five days.")
    assert one("bioasq.json").gold_documents == ("PMID:99900004",)


# What the broken twin of a format has: how many rows are questions, how many ask nothing, and the reason for every other.
TWINS = {
    "medqa.jsonl": (2, 0, [
        "line 2: gold 'BD' is not one of the letters", "line 3: has two answers: letter D is 'Vitamin K', but", "line 4: has no answer_idx",
        "line 6: names answer_idx twice", "line 7: is no UTF-8 at byte 18", "line 8: is no JSON: Unterminated string",
    ]),
    "medmcqa.json": (2, 0, [
        "line 2: cop: must be 1 to 4, not 0", "line 3: cop: must be one number, not '1,3'",
        "line 4: cop: must be 1 to 4, not -1 (a test split",
        "line 5: options.D: Input should be a valid string",
        "line 6: id 'medmcqa/4e1715fe-0bc3-494e-b6eb-000000000001' stands in medmcqa.json, line 1",
    ]),
    "ori_pqal.json": (1, 0, ["(1): the answer must be one of yes, no, maybe, not 'perhaps'",
        "(2): has no final_decision", "(3): is a text"]),
    "anatomy_test.csv": (2, 0, ["line 2: has 5 columns", "line 3: gold 'AC' is not one", "line 4: is empty"]),
    "bioasq.json": (1, 0, ["must be one of yes, no, not 'no, yes'", "has no exact_answer", "7,' where a row is expected"]),
    "medxpertqa.jsonl": (1, 1, ["line 2: names 2 right answers: A, B", "line 3: gold 'K' is not one of the letters A, B, C"]),
    "medcalc.csv": (2, 0, [
        "Lower Limit 7 is above Upper Limit 3", "9 is not within its limits 1 and 3", "13/40/2000 is no date",
        "must be a number, a date or",
        "has 12 columns, not the 14 of the header",
    ]),
    "medical_o1_verifiable_problem.json": (2, 0, ["has no Ground-True Answer", "has no Open-ended Verifiable Question", "is a text"]),
    "RDS.json": (2, 0, ["line 2: has no diagnosis", "line 3: has no case_report",
        "line 4: id 'rarearena/rds/9990001-1' stands in RDS.json, line 1"]),
    "EHRNoteQA.jsonl": (1, 0, ["gold 'F' is not one of the letters A, B, C, D, E", "gold 'C' is not one of the letters A, B, D, E"]),
    "mediq.jsonl": (2, 0, ["letter C is 'Pneumococcal', but the answer is said to be 'Tetanus'", "has no options"]),
    "hotpot.json": (1, 0, ["has no answer", "its fields are not those of HotpotQA", "its fields are not those of HotpotQA"]),
    "2wiki.json": (2, 0, ["reference_graphs.0.0.2: Field required"]),
    "musique.jsonl": (1, 1, ["has no answer", "has no answer"]),
    "medr3.jsonl": (1, 0, ["lower limit 44.0 is above", "id 'own/1' stands in medr3.jsonl, line 1 already", "golden: Extra inputs"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_of_a_broken_twin_the_good_rows_are_kept_and_the_others_named(name: str) -> None:
    count, left_out, reasons = TWINS[name]
    found = list(read(BROKEN / name))
    bad = [each for each in found if isinstance(each, Malformed) and not each.left_out]
    assert len(found) - len(bad) - left_out == count
    assert len(bad) == len(reasons)
    for each, reason in zip(bad, reasons, strict=True):
        assert reason in str(each) and "\n" not in str(each)
    with pytest.raises(FileRefused) as refused:
        list(read_questions(BROKEN / name))
    assert str(refused.value) == str(bad[0])


def test_every_file_has_a_broken_twin() -> None:
    assert {path.name for path in BROKEN.iterdir()} == {*TWINS, "bom_and_crlf.json"}


def test_a_byte_order_mark_and_windows_line_ends_change_nothing() -> None:
    plain, windows = (list(read_questions(path)) for path in (DATA / "medmcqa.json", BROKEN / "bom_and_crlf.json"))
    assert [each.model_copy(update={"provenance": ()}) for each in plain] == [
        each.model_copy(update={"provenance": ()}) for each in windows
    ]


def test_ids_follow_from_the_content_and_not_from_the_order(tmp_path: Path) -> None:
    lines = (DATA / "medqa_4_options.jsonl").read_text().splitlines()
    path = tmp_path / "turned.jsonl"
    path.write_text("\n".join([*reversed(lines), lines[0]]))
    ids = [each.id for each in read_questions(path)]
    assert ids[:2] == [each.id for each in read_questions(DATA / "medqa_4_options.jsonl")][::-1]
    assert ids[2].startswith(ids[1]) and ids[2] != ids[1], "the same row again is another question"


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (DATA / name).read_text()
    return list(json.loads(text)) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As `datasets` saves to disk: an Arrow stream beside what it says about itself."""
    path.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize("name", ["medqa_4_options.jsonl", "2wiki_dev.json", "RDS.json"])
def test_parquet_and_a_dataset_saved_to_disk_hold_the_same_questions(tmp_path: Path, name: str) -> None:
    rows = rows_of(name)
    for row in rows:
        row.pop("age", None)  # a number beside its unit fits no column
    if name == "2wiki_dev.json":  # nested lists of mixed types do not fit a column: its table has structs
        facts, context = rows[0].pop("supporting_facts"), rows[0].pop("context")
        rows[0]["supporting_facts"] = {"title": [fact[0] for fact in facts], "sent_id": [fact[1] for fact in facts]}
        rows[0]["context"] = {"title": [each[0] for each in context], "sentences": [each[1] for each in context]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    expected = [each.model_copy(update={"provenance": ()}) for each in read_questions(DATA / name)]
    for path in (tmp_path / "train-00000-of-00001.parquet", saved(tmp_path / "disk", rows)):
        found = list(Dataset(path).read_strictly())
        assert [each.model_copy(update={"provenance": ()}) for each in found] == expected
        assert found[0].provenance[0].origin.endswith("row 1")


def test_medmcqa_mmlu_and_pubmedqa_as_tables(tmp_path: Path) -> None:
    tables: dict[str, tuple[list[dict[str, Any]], str, list[str]]] = {
        "medmcqa": ([row | {"cop": row["cop"] - 1} for row in rows_of("medmcqa.json")], "medmcqa", ["C", "A"]),
        "mmlu": ([{"question": "?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 3}], "mmlu", ["D"]),
        "pubmedqa": (
            [{
                "pubid": 99900001, "question": "Does it?", "context": {"contexts": ["x"], "labels": ["A"], "meshes": []},
                "long_answer": "…", "final_decision": "maybe",
            }], "pubmedqa", ["C"],
        ),
    }  # fmt: skip
    for name, (rows, source, gold) in tables.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        found = list(read_questions(path))
        assert [each.gold for each in found] == gold and {each.source for each in found} == {source}


def test_a_folder_of_several_splits_must_name_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("about it")
    for split, name in (("train", "medqa_4_options.jsonl"), ("dev", "RDS.json"), ("test", "medcalc.csv")):
        (tmp_path / "data" / f"{split}{Path(name).suffix}").write_bytes((DATA / name).read_bytes())
    with pytest.raises(FileRefused, match="holds the splits test, train, validation: name one, as"):
        list(Dataset.parse(str(tmp_path)).read())
    for split, source in (("train", "medqa"), ("dev", "rarearena"), ("validation", "rarearena"), ("test", "medcalc")):
        assert {each.source for each in Dataset.parse(f"{tmp_path}@{split}").read_strictly()} == {source}
    with pytest.raises(FileRefused, match="has no split 'exam'; there are test, train, validation"):
        list(Dataset.parse(f"{tmp_path}@exam").read())


def test_what_has_no_answer_to_check_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "sft.json"
    path.write_text(json.dumps([{"Question": "Why?", "Complex_CoT": "Hmm.", "Response": "Because."}]))
    (only,) = read(path)
    assert isinstance(only, Malformed) and only.left_out
    assert [each.left_out for each in read(DATA / "bioasq.json") if isinstance(each, Malformed)] == [True, True]
