"""What stands for a person is found as often as docs/security.md says, and taken out of what is stored and of what leaves."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from actors.messages import GroupSummary
from medr3.cli import app
from medr3.cli_common import load_config
from medr3.redaction import NO_TOKEN, for_export, redact_rows, redacts
from medr3.run.course import Course
from medr3.run.journal import FinishedGroup
from security.identifiers import KINDS, find, redact
from trajectories.events import EventKind, EventLog
from trajectories.schema import EPISODE_SCHEMA, Episode, Search, Segment, VersionSpan, WeightVersion, check, to_table
from trajectories.spool import read_spool
from trajectories.store import TrajectoryStore, stored_steps, with_ending

ROOT = Path(__file__).parents[2]
NOTES = ROOT / "tests" / "data" / "phi"
_MARK = re.compile(r"\[\[([A-Z]+)\|(.*?)\]\]")
COVERED = 0.8  # of its characters must be gone for an identifier to count as found
SLOWEST_S = 1.5  # for 100,000 characters that were made to be slow; 0.2 s on a quiet core


class Note(NamedTuple):
    text: str
    spans: list[tuple[int, int, str]]


def notes(name: str) -> Iterator[Note]:
    for line in (NOTES / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        text, spans, position = "", [], 0
        for match in _MARK.finditer(line):
            text += line[position : match.start()]
            spans.append((len(text), len(text) + len(match[2]), match[1]))
            text, position = text + match[2], match.end()
        yield Note(text + line[position:], spans)


class Measured(NamedTuple):
    found: dict[str, tuple[int, int]]  # by kind: how many, of how many
    wrong: int
    claimed: int

    @property
    def recall(self) -> float:
        return sum(found for found, _ in self.found.values()) / sum(there for _, there in self.found.values())

    @property
    def precision(self) -> float:
        return 1 - self.wrong / self.claimed


def measure(name: str) -> Measured:
    found, wrong, claimed = dict.fromkeys(KINDS, (0, 0)), 0, 0
    for note in notes(name):
        said = find(note.text)
        gone = {i for each in said for i in range(each.start, each.end)}
        meant = {i for start, end, _ in note.spans for i in range(start, end)}
        for start, end, kind in note.spans:
            hit = sum(i in gone for i in range(start, end)) >= COVERED * (end - start)
            found[kind] = (found[kind][0] + hit, found[kind][1] + 1)
        claimed += len(said)
        wrong += sum(2 * len(meant & set(range(each.start, each.end))) < each.end - each.start for each in said)
    return Measured(found, wrong, claimed)


def test_the_figures_of_the_page_are_those_of_the_test_set() -> None:
    measured = measure("test.txt")
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for kind, (found, there) in measured.found.items():
        assert re.search(rf"\| {kind} \| {there} \| {found} \|", page), f"{kind}: {found} of {there}"
    assert f"recall {measured.recall:.3f}" in page and f"precision {measured.precision:.3f}" in page


def test_what_the_patterns_were_made_from_is_found_whole() -> None:
    measured = measure("tuning.txt")
    assert (measured.recall, measured.precision) == (1.0, 1.0)


PARTS = ["Dr. ", "MRN ", "12/", "3/", "2031", "May ", "+1 ", "a@b.cd", "Aa "]
SLOW = ["A", "Aa ", "1 ", "1-", "a@", "+1 ", "Dr. ", "Dr. A. ", "1/2/", "May 1 ", "Aa-", "patient ID A1 ", "name Aa "]


@given(st.text(max_size=200) | st.lists(st.sampled_from(PARTS)).map("".join))
def test_twice_is_once_and_nothing_overlaps(text: str) -> None:
    found = find(text)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("piece", SLOW)
def test_no_text_takes_long(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    started = time.process_time()
    find(text)
    assert time.process_time() - started < SLOWEST_S


# --- rows

NOTE = "Seen by Dr. Ebbe Kolt on 4 May 2031, MRN 0098123, call 555-010-2222 or write to e.kolt@example.org."
PIECES = ("Kolt", "4 May 2031", "0098123", "555-010-2222", "example.org")


def rows() -> pa.Table:
    search = Search(0, NOTE, ["d1"], [NOTE, "metformin lowers glucose"], [1.0], [1], "h", 1.0)
    episode = Episode(
        "r", "g1", "g1-0", "q1", 0, "p", "s", "text", [5, 6, 7], [False, True, True], [0.0, -1.0, -2.0],
        [Segment("prompt", 0, 1, -1), Segment("model", 1, 3, 0)], [VersionSpan(1, 1, 1, 3)], [search, replace(search, turn=1)],
        answer=NOTE, text=f"<think> {NOTE} </think>",
    )  # fmt: skip
    return to_table([episode, replace(episode, episode_id="g1-1", searches=[])])


def clean(text: str) -> bool:
    return not any(piece in text for piece in PIECES)


def test_stored_rows_lose_their_identifiers_and_keep_their_tokens() -> None:
    before, after = rows(), redact_rows(rows())
    assert after.schema.equals(EPISODE_SCHEMA, check_metadata=True)
    assert not clean(str(before.to_pylist())) and clean(str(after.to_pylist()))
    untouched = [name for name in EPISODE_SCHEMA.names if name not in ("text", "answer", "searches")]
    assert after.select(untouched).equals(before.select(untouched)), "what is learned from stays as it is"
    assert after["searches"].to_pylist()[0][0]["documents"][1] == "metformin lowers glucose"
    assert redact_rows(after).equals(after)


def test_exported_rows_say_nothing_by_their_tokens_either() -> None:
    after = for_export(rows())
    assert after["token_ids"].to_pylist() == [[NO_TOKEN] * 3] * 2
    assert all(check(row) == [] for row in after.to_pylist()), "masks, segments and log-probabilities still fit"


@pytest.mark.parametrize("setting", ["phi", "none"])
def test_export_and_show_obey_the_run_s_setting(setting: str, tmp_path: Path) -> None:
    """Also for rows that were stored before it was set."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"run": {"redact": setting}}))
    TrajectoryStore(run / "trajectories").write(1, 1, [with_ending(rows(), "trained", "", 1, WeightVersion(1, 0))])
    with EventLog(run / "events.jsonl") as events:
        events.append(EventKind.RUN_STARTED, run_id="r", generation=1, seed=0, max_staleness=0, config_hash="")
    assert redacts(run) is (setting == "phi")
    for name in ("out.parquet", "out.jsonl"):
        done = CliRunner().invoke(app, ["trajectories", "export", str(run), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    leaves = [str(pq.read_table(tmp_path / "out.parquet").to_pylist()), (tmp_path / "out.jsonl").read_text()]
    leaves += [CliRunner().invoke(app, ["trajectories", "show", str(run), "g1", *json_]).output for json_ in ([], ["--json"])]
    assert all("think" in text for text in leaves)
    assert [clean(text) for text in leaves] == [setting == "phi"] * 4


@pytest.mark.parametrize("setting", ["phi", "none"])
def test_a_run_writes_its_rows_without_identifiers_and_learns_from_them_whole(setting: str, tmp_path: Path) -> None:
    """Through the journal that a run opens: spool and step's file; what the learner is given is another reference."""
    config = load_config(
        ROOT / "configs" / "demo.yaml", [f"run.redact={setting}", f"run.folder={tmp_path}", "tracking.wandb=disabled"]
    )
    journal = Course(config, None, asyncio.Event(), lambda: None)._open_journal()
    version = WeightVersion(1, 0)
    summary = GroupSummary("g1", 0, "e0", version, version, [0.0, 0.0], [False, False])
    learned: Any = rows()
    group = FinishedGroup(summary, "s", learned, rows())
    asyncio.run(journal.spooled(group))
    (spooled,) = read_spool(tmp_path / "trajectories").groups
    journal.store.step(1, [with_ending(group.table, "trained", "", 1, version)], ["g1"])
    journal.tracker.close()
    journal.events.close()
    journal.store.close()
    (stored,) = stored_steps(tmp_path / "trajectories")
    for written in (spooled.rows, stored.read()):
        assert clean(str(written.to_pylist())) is (setting == "phi")
        assert written["token_ids"].to_pylist() == learned["token_ids"].to_pylist()
    assert group.rows is learned and not clean(str(learned.to_pylist()))
    assert config.hash() == load_config(ROOT / "configs" / "demo.yaml", []).hash(), "it may be set on a resume"
