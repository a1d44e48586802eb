"""Rows for people: every group once, with the outcome that counts, and nothing in them that a terminal would obey."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from medr3.cli_trajectories import trajectories
from medr3.errors import UserError
from medr3.observe.plain import plain, plain_line
from tests.run_folder import RunFolder, episode
from tests.synthetic_run import write_run
from trajectories.audit import TRAJECTORIES_FOLDER
from trajectories.events import EventKind
from trajectories.reading import Record
from trajectories.schema import STORED_SCHEMA, Search, Segment, VersionSpan, WeightVersion, to_table
from trajectories.spool import Spool
from trajectories.store import with_ending

NASTY = "\x1b[31mred\x1b]0;title\x07 [bold]not bold[/bold] :smile: \u202eback\x9b2J [link=http://127.0.0.1]x[/link]"


def said(*arguments: object) -> str:
    done = CliRunner().invoke(trajectories, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(trajectories, [str(each) for each in arguments])
    assert isinstance(done.exception, UserError)
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 2 was rolled back and done again; the first process left g9 behind, the second one holds g8 and g7, which was dropped."""
    folder = tmp_path_factory.mktemp("crashed")
    run = RunFolder(folder)
    run.train()
    position = run.checkpoint()
    run.train(row={"text": "an earlier course"})
    Spool(folder / TRAJECTORIES_FOLDER, 1).append(to_table([episode("g9", 0, WeightVersion(1, 1))]))
    run.resume(1, position=position)
    run.made = 2  # names behind the manifest are given out again
    run.train(age=0, row={"text": NASTY, "answer": NASTY})
    spool = Spool(folder / TRAJECTORIES_FOLDER, 2)
    run.made = 7
    for name in (run.admit(), run.admit()):
        spool.append(to_table([episode(name, 0, run.version)]))
    run.end(EventKind.DROPPED, "g7", "too old")
    run.log.close()
    return folder


def test_every_group_has_the_outcome_that_counts(crashed: Path) -> None:
    ended = [
        (recorded.step, row["group_id"], row["outcome"], row["reason"])
        for recorded in Record(crashed).read(["group_id", "reason"])
        for row in recorded.rows.slice(0, 9).to_pylist()
    ]
    assert sorted(set(ended)) == [
        (-1, "g7", "dropped", "too old"),
        (-1, "g8", "open", ""),
        (-1, "g9", "rolled_back", ""),
        (1, "g0", "trained", ""),
        (1, "g1", "trained", ""),
        (2, "g2", "rolled_back", ""),
        (2, "g2", "trained", ""),
        (2, "g3", "rolled_back", ""),
        (2, "g3", "trained", ""),
    ]
    newest = [recorded.rows.num_rows for recorded in Record(crashed).read([], newest_first=True)]
    assert newest == [1, 1, 1, 4, 4, 4]


def test_an_episode_is_found_in_the_course_that_counts(crashed: Path) -> None:
    found = [Record(crashed).find(name) for name in ("g2/g2-1", "g2-1", "g2/1", "g8", "g9/g9-0", "g2/g3-1", "g2/7")]
    assert [row and (row["group_id"], row["text"] == NASTY, row["outcome"]) for row in found] == [
        *[("g2", True, "trained")] * 3, ("g8", False, "open"), ("g9", False, "rolled_back"), None, None,
    ]  # fmt: skip


def test_a_text_can_say_anything_and_the_terminal_obeys_nothing(crashed: Path) -> None:
    shown = said("show", crashed, "g2/g2-0")
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
    for words in ("\\x1b[31mred", "[bold]not bold[/bold] :smile:", "\\u202eback", "[link=http://127.0.0.1]x[/link]"):
        assert words in shown
    assert "the question" not in shown


@given(st.text())
def test_plain_text_holds_nothing_hidden_and_keeps_what_is_shown(text: str) -> None:
    assert all(character.isprintable() or character in "\n\t" or character.isspace() for character in plain(text))
    assert not set(plain_line(text)) & {"\n", "\t", "\r", "\x1b"}
    assert "".join(c for c in plain(text) if c in text and c.isalnum()).count("a") >= text.count("a")


def test_an_episode_reads_in_the_order_in_which_it_happened(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "demo")
    shown = said("show", folder, last_episode(folder))
    order = ["group", "\nquestion\n", "thinking", "search (2 documents", "document d17, level I", "document d18, level IV"]
    order += [
        "search (1 documents, 2 ms, cached)",
        "document d40, level II",
        "\nanswer\n",
        "evidence",
        "of it in turn 1: gain +0.250",
        "total",
    ]
    places = [shown.index(words) for words in order]
    assert places == sorted(places)


def last_episode(folder: Path) -> str:
    for recorded in Record(folder).read(["group_id", "episode_id", "phase", "correct"], newest_first=True):
        for row in recorded.rows.to_pylist():
            if row["phase"] == "joint" and row["correct"]:
                return f"{row['group_id']}/{row['episode_id']}"
    raise AssertionError("the synthetic run has right answers in its last phase")


def test_the_table_and_its_json_agree(crashed: Path) -> None:
    table, lines = said("show", crashed, "--last", "3").splitlines(), json.loads(said("show", crashed, "--last", 3, "--json"))
    assert [line["group_id"] for line in lines] == [line.split()[0] for line in table[1:]] == ["g9", "g7", "g8"]
    assert lines[1]["ended"] == "dropped: too old" and lines[0]["tokens"] == 4


def test_statistics_tell_ages_drops_and_the_bias_of_length(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.train()
    run.train(age=1, groups=1)
    group = run.admit()
    long = replace(
        episode(group, 0, run.version), token_ids=list(range(20)), loss_mask=[False] * 2 + [True] * 18, logprobs=[0.0] * 20,
        segments=[Segment("prompt", 0, 2, -1), Segment("model", 2, 20, 0)], versions=[VersionSpan(1, 0, 2, 20)],
        searches=[Search(0, "q", [], [], [], [], "h", 1.0)],
    )  # fmt: skip
    run.end(EventKind.DROPPED, group, "stale")
    run.store.write(3, 1, [with_ending(to_table([long]), "dropped", "stale", -1, run.version)])
    found = json.loads(said("stats", tmp_path, "--json"))
    assert found["ages"] == {"0": 4, "1": 2} and found["drops"] == {"stale": 1}
    bias = {"phase": "joint", "trained": 4.0, "not_trained": 18.0, "by_reason": {"stale": 18.0}, "ratio": 4.5}
    assert found["length_bias"] == [bias]
    trained, dropped = found["by_phase_source_outcome"]
    assert (trained["groups"], trained["episodes"], dropped["searches"], dropped["response_tokens"]["most"]) == (3, 6, 1.0, 18)
    shown = said("stats", tmp_path)
    assert "not trained 18.0, 4.50 times as long (stale: 18)" in shown and "0: 4, 1: 2" in shown


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".arrow"])
def test_an_export_is_what_was_recorded(crashed: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"rows{ending}"
    assert said("export", crashed, "--out", out, "--phase", "joint", "--outcome", "trained").strip() == f"8 episodes in {out}"
    expected = pa.concat_tables(recorded.rows for recorded in Record(crashed).read()).to_pylist()
    expected = [row for row in expected if row["outcome"] == "trained"]
    if ending == ".jsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == expected
        assert "\x1b" not in out.read_text()
    else:
        table = pq.read_table(out) if ending == ".parquet" else pa.ipc.open_file(out).read_all()
        assert table.schema.equals(STORED_SCHEMA) and table.to_pylist() == expected
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert said("export", crashed, "--out", tmp_path / "one.jsonl", "--step", "1").startswith("4 episodes")


def test_bad_input_is_one_line(crashed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.jsonl").touch()
    RunFolder(tmp_path / "new").log.close()
    assert "no such run folder" in refused("show", tmp_path / "nowhere")
    assert "cannot be read as a run" in refused("stats", tmp_path / "empty")
    assert "no group has finished yet" in refused("show", tmp_path / "new")
    assert "no group has finished yet" in refused("stats", tmp_path / "new")
    assert "no recorded episode 'g2/nothing'" in refused("show", crashed, "g2/nothing")
    assert "--outcome lost: there are trained, dropped" in refused("export", crashed, "--out", "x.jsonl", "--outcome", "lost")
    assert "its ending says the format" in refused("export", crashed, "--out", "rows.csv")
    assert "there.jsonl exists" in refused("export", crashed, "--out", tmp_path / "there.jsonl")
    assert "no episode matches --phase cooking --step 1" in refused(
        "export", crashed, "--out", tmp_path / "x.jsonl", "--phase", "cooking", "--step", "1"
    )
    assert not (tmp_path / "x.jsonl").exists()
    broken = tmp_path / "broken"
    RunFolder(broken).train()
    next((broken / TRAJECTORIES_FOLDER).iterdir()).write_bytes(b"PAR1 but not really")
    assert "cannot be read as a run" in refused("stats", broken)
