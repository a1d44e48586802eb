"""`medr3 data` from its command line to its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medr3.cli import app
from medr3.errors import UserError
from tasks.lengths import LengthMixture
from tasks.questions import Question
from tasks.reading import read_questions

DATA = Path(__file__).parents[1] / "data" / "questions"
MEDQA = DATA / "medqa_4_options.jsonl"
BROKEN = DATA / "broken" / "medqa.jsonl"


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_a_check_counts_and_names_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = call("check", MEDQA, DATA / "medcalc.csv", DATA / "bioasq.json").splitlines()
    assert lines[0].split() == ["source", "questions", "choice", "number", "text", "duplicates", "left", "out", "malformed"]
    assert lines[1].split()[1:] == ["medqa", "2", "2", "0", "0", "0", "0", "0"]
    assert lines[2].split()[1:] == ["medcalc", "4", "0", "3", "1", "0", "0", "0"]
    assert lines[3].split()[1:] == ["bioasq", "2", "1", "0", "1", "0", "2", "0"]
    assert "left out: 1 is of type list" in lines and not (tmp_path / "quarantine.jsonl").exists()


def test_malformed_rows_are_counted_quarantined_and_fail_unless_they_are_allowed(tmp_path: Path) -> None:
    kept = tmp_path / "new" / "kept.jsonl"
    output = call("check", BROKEN, "--quarantine", kept, code=1)
    assert f"{BROKEN}, line 2: gold 'BD'" in output and f"6 malformed rows were written to {kept}" in output
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["place"] for row in rows] == [f"line {i}" for i in (2, 3, 4, 6, 7, 8)]
    assert json.loads(rows[0]["row"])["answer_idx"] == "BD" and rows[4]["row"] == '{"question": "caf\\xe9"}'
    call("check", BROKEN, "--quarantine", kept, "--allow-bad", 5, code=1)
    call("check", BROKEN, "--quarantine", kept, "--allow-bad", 6)
    assert [path.name for path in kept.parent.iterdir()] == ["kept.jsonl"]


def test_contamination_in_json(tmp_path: Path) -> None:
    trained = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in MEDQA.read_text().splitlines()]
    rows[0]["question"] = rows[0]["question"].upper()
    trained.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:1], *rows[:1]]))
    found: dict[str, Any] = json.loads(call("check", trained, "--against", MEDQA, "--json", "--quarantine", tmp_path / "q"))
    assert found["files"][0]["duplicates"] == 1 and found["contamination"]["evaluated"] == 2
    assert {name: found["contamination"][name] for name in ("same", "near", "passage")} == {"same": 1, "near": 0, "passage": 0}
    (seen,) = found["contamination"]["seen"]
    assert seen["how"] == "same" and seen["evaluated"] == next(iter(read_questions(MEDQA))).id
    assert "1 of 2 evaluation questions are among the others: 1 word for word" in call("check", trained, "--against", MEDQA)


def test_what_is_imported_is_what_training_reads(tmp_path: Path) -> None:
    out = tmp_path / "questions.jsonl"
    output = call("import", MEDQA, DATA / "medcalc.csv", DATA / "bioasq.json", MEDQA, "--out", out)
    assert output == f"8 questions in {out}; 2 duplicates and 2 rows without a question left out\n"
    written = list(read_questions(out))
    assert written == [*read_questions(MEDQA), *read_questions(DATA / "medcalc.csv"), *read_questions(DATA / "bioasq.json")]
    call("import", MEDQA, MEDQA, "--keep-duplicates", "--out", tmp_path / "twice.jsonl")
    assert [each.text for each in read_questions(tmp_path / "twice.jsonl")] == [each.text for each in read_questions(MEDQA)] * 2
    call("import", DATA / "ori_pqal.json", "--with-context", "--out", tmp_path / "context.jsonl")
    assert all(each.context for each in read_questions(tmp_path / "context.jsonl"))


def test_what_will_be_evaluated_is_left_out(tmp_path: Path) -> None:
    out, rows = tmp_path / "clean.jsonl", [json.loads(line) for line in MEDQA.read_text().splitlines()]
    trained = tmp_path / "train.jsonl"
    shouted, changed = (
        rows[0] | {"question": rows[0]["question"].upper()},
        rows[0] | {"question": rows[0]["question"].replace("brittle", "bad")},
    )
    fresh = rows[1] | {"question": "Which vitamin is stored in the liver for years, and is absorbed in the ileum?"}
    trained.write_text("".join(json.dumps(row) + "\n" for row in [shouted, changed, fresh, fresh]))
    output = call("import", trained, "--against", MEDQA, "--out", out)
    assert output.splitlines()[0] == f"1 questions in {out}; 1 duplicates and 0 rows without a question left out"
    assert output.splitlines()[1].startswith("2 left out because an evaluation on")
    assert [each.text for each in read_questions(out)] == [fresh["question"]]


def test_a_corpus_is_counted_before_it_is_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpora = DATA.parent / "corpora"
    found: dict[str, Any] = json.loads(call("corpus", corpora / "pubmed25n0001.xml", corpora / "notes", "--json"))
    articles, notes = found["corpora"]
    assert (articles["documents"], articles["retracted"], articles["years"]) == (2, 1, [1998, 2011])
    assert articles["levels"] == {"I": 0, "II": 1, "III": 0, "IV": 1, "V": 0, "VI": 0, "none": 0}
    assert notes["documents"] > 1 and found["left_out"] == {"has no abstract": 1} and found["malformed"] == 0
    assert "2 documents of" in call("corpus", corpora / "pubmed25n0001.xml", "--chunk", 1000)
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "text": "b"}\n{"id": "a", "text": "b"}\n{')
    output = call("corpus", "bad.jsonl", code=1)
    assert (
        "2 documents of 2 characters" in output
        and "1 ids that came before" in output
        and "bad.jsonl, line 3: is no JSON" in output
    )
    for arguments, reason in (
        (("gone.jsonl",), "No such file"),
        (("bad.jsonl", "--chunk", 60, "--overlap", 50), "an overlap of 50 is more than"),
    ):
        with pytest.raises(UserError, match=reason):
            call("corpus", *arguments)


def test_lengths_are_drawn_by_id_and_seed(tmp_path: Path) -> None:
    out = tmp_path / "long.jsonl"
    call("import", DATA / "medcalc.csv", "--out", out, "--length", "exact=1", "--tokens", "200-300")
    asked = list(read_questions(out))
    assert len(asked) == 4 and all(
        each.length and each.length.mode == "exact" and 200 <= each.length.tokens <= 300 for each in asked
    )
    assert all(each.id.endswith(f"@exact-{each.length.tokens}") for each in asked if each.length)
    mixture = LengthMixture(exact=1, at_most=2, free=1, shortest=10, longest=20)
    questions = [Question(id=f"q{i}", text="?", kind="text", gold="x") for i in range(2_000)]
    drawn = list(mixture.apply(questions, 3))
    modes = [each.length.mode if each.length else "free" for each in drawn]
    assert abs(modes.count("at_most") - 1_000) < 100 and abs(modes.count("exact") - 500) < 100
    assert list(mixture.apply(reversed(questions), 3)) == drawn[::-1] and drawn != list(mixture.apply(questions, 4))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("check", "gone.jsonl"), "gone.jsonl: No such file"),
        (("check", MEDQA, "--format", "medkwa"), "medkwa: no such format"),
        (("check", MEDQA, "--format", "mirage"), "is JSON lines, but mirage is JSON by set"),
        (("import", MEDQA, "--out", MEDQA), "is there already: name a new file"),
        (("import", MEDQA, "--out", "a.csv"), "let its name end with .jsonl"),
        (("import", MEDQA, "--out", "a.jsonl", "--length", "exakt=1"), "must be such as --length exact=1"),
        (("import", MEDQA, "--out", "a.jsonl", "--length", "exact=0"), "no share is above 0"),
        (
            ("import", MEDQA, "--out", "a.jsonl", "--length", "exact=1", "--tokens", "9-3"),
            "the shortest length 9 is above the longest",
        ),
        (("import", MEDQA, "--out", "none/there/a.jsonl"), "No such file or directory"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=reason) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_with_too_many_bad_rows_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "q.jsonl"
    call("import", BROKEN, "--out", out, "--quarantine", tmp_path / "kept.jsonl", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]
    call("import", BROKEN, "--out", out, "--quarantine", tmp_path / "kept.jsonl", "--allow-bad", 6)
    assert len(list(read_questions(out))) == 2


def test_the_command_line_imports_neither_torch_nor_ray_nor_vllm(tmp_path: Path) -> None:
    code = (
        "import sys; from medr3.cli import app; app(['data', 'check', sys.argv[1]], standalone_mode=False);"
        "heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, MEDQA],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
