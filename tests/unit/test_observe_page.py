"""The run's page without a browser: what it holds, what it follows, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medr3.cli import app
from medr3.errors import UserError
from medr3.observe.browsing import PAGE, EpisodeShelf, Place, Wanted
from medr3.observe.episodes import episode_view
from medr3.observe.following import Follower, Tail, update
from medr3.observe.page import embedded
from medr3.observe.record import load_record
from medr3.observe.report import write_report
from medr3.observe.serving import Dashboard
from medr3.observe.view import view_of
from tests.synthetic_run import HOSTILE, PHASES, episode, write_run
from trajectories.events import EventKind, EventLog
from trajectories.schema import WeightVersion, to_table
from trajectories.store import TrajectoryStore, with_ending


class Parsed(HTMLParser):
    """Fails on a tag that is closed by another; keeps references to something outside, and what inline elements hold."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.inline: list[tuple[str, str]] = []
        self.policy = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"] or ""
        if tag in ("script", "style"):
            self.inline.append((known.get("type") or tag, ""))
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            kind, before = self.inline[-1]
            self.inline[-1] = (kind, before + data)

    def of(self, kind: str) -> str:
        (found,) = [content for own, content in self.inline if own == kind]
        return found

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.of("application/json"))
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def report(run: Path) -> Parsed:
    return Parsed(write_report(run).read_text(encoding="utf-8"))


def test_the_report_refers_to_nothing_outside_and_its_policy_allows_only_what_it_holds(report: Parsed) -> None:
    assert report.references == ["data:,", "#main"]
    for kind, directive in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(report.of(kind).encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in report.policy
    assert report.policy.startswith("default-src 'none';")
    assert "connect-src 'none'" in report.policy
    assert "unsafe" not in report.policy
    assert not re.findall(r"https?://(?!github\.com/leeoniya/uPlot)", report.of("script") + report.of("style"))


def test_what_a_document_or_a_model_wrote_cannot_end_the_script_that_carries_it(report: Parsed) -> None:
    assert [kind for kind, _ in report.inline] == ["style", "application/json", "script"]
    shown = json.dumps(report.data["episodes"])
    assert "document.title = 'broken'" in shown
    assert "</script><script>" in HOSTILE
    assert "<" not in report.of("application/json")


@settings(max_examples=50)
@given(st.lists(st.text() | st.floats(allow_nan=False, allow_infinity=False)))
def test_anything_embedded_is_read_back_as_it_was(value: Any) -> None:
    text = embedded(value)
    assert "<" not in text
    assert json.loads(text) == value


def test_the_report_has_phases_reasons_intervals_engines_and_endings(report: Parsed) -> None:
    data = report.data
    assert [(phase["name"], phase["left_by"]) for phase in data["phases"]] == [
        ("reasoning", "plateau"), ("retrieval", "max_steps"), ("joint", "plateau"),
    ]  # fmt: skip
    assert all("is not 0.010 above" in phase["reason"] for phase in data["phases"])
    probe = data["probes"][0]
    assert probe["low"] < probe["score"] < probe["high"]
    assert data["endings"]["counts"] == {"trained": 2976, "dropped": 221, "voided": 1}
    assert ["dropped", "all rewards equal", 212] in data["endings"]["why"]
    lanes = {lane["engine"]: lane["served"] for lane in data["engines"]["lanes"]}
    assert lanes["engine-0.0"] == [[1, 93, True]]
    assert lanes["engine-1.0"] == [[1, 39, True], [41, 41, False], [42, 93, True]], "silent at 40, and refused at 41"
    titles = {chart["title"] for chart in data["charts"]}
    assert {"Reward components", "Retrieval latency", "Age of trained tokens", "Throughput"} <= titles
    assert "Distance from the reference" not in titles, "never logged"
    assert data["accuracy"]["rows"][0]["cells"][1]["without"] == 0.05


def test_every_curve_is_as_long_as_the_run(report: Parsed) -> None:
    columns = report.data["columns"]
    assert len(columns["step"]) == sum(steps for _, steps, *_ in PHASES)
    assert {len(values) for values in columns.values()} == {len(columns["step"])}
    for chart in report.data["charts"]:
        assert {each["metric"] for each in chart["series"]} <= columns.keys()


def test_an_episode_is_cut_into_turns_with_documents_levels_and_rewards() -> None:
    view = episode_view(to_table([episode("joint", 1, True)]).to_pylist()[0], lambda row: None)
    first, second, third = view["turns"]
    assert [block["kind"] for block in first["blocks"]] == ["thinking", "search", "document", "document"]
    assert first["blocks"][1]["note"] == "2 documents, 3 ms"
    assert [(block["document"], block["level"]) for block in first["blocks"][2:]] == [("d17", 1), ("d18", 4)]
    assert first["rewards"] == [["gain", 0.25]]
    assert second["blocks"][1]["note"] == "1 documents, 2 ms, cached"
    assert third["blocks"][-1] == {"kind": "answer", "text": "B", "document": "", "level": 0, "note": ""}


def states(folder: Path) -> str:
    return str(Parsed(write_report(folder).read_text(encoding="utf-8")).data["state"]["word"])


def test_a_run_that_goes_on_or_died_or_stopped_says_so(tmp_path: Path) -> None:
    assert states(write_run(tmp_path / "going", ended=False)) == "going on"
    with EventLog(tmp_path / "failed" / "events.jsonl") as events:
        events.append(EventKind.FAILED, reason="engine 0 <did> not start")
    assert states(tmp_path / "failed") == "failed"
    with EventLog(tmp_path / "paused" / "events.jsonl") as events:
        events.append(EventKind.PAUSED, step=3, reason="asked to stop")
    assert states(tmp_path / "paused") == "stopped"
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "status.json").write_text('{"state": "preparing", "host": "elsewhere", "pid": 1}')
    assert states(tmp_path / "early") == "preparing"
    (tmp_path / "paused" / "status.json").write_text('{"state": "preparing", "host": "elsewhere", "pid": 1, "time": 1e11}')
    assert states(tmp_path / "paused") == "preparing", "the same command was given again"
    gone = load_record(write_run(tmp_path / "gone", ended=False))
    assert view_of(gone, alive=False)["state"]["word"] == "gone"


def test_a_file_is_read_as_it_grows_and_anew_when_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.new() == (False, [])
    path.write_bytes(b"a\nb\nto")
    assert tail.new() == (False, [b"a", b"b"])
    assert tail.new() == (False, [])
    with path.open("ab") as file:
        file.write(b"rn\nc\n")
    assert tail.new() == (False, [b"torn", b"c"])
    (tmp_path / "draft").write_bytes(b"a\n")
    (tmp_path / "draft").replace(path)
    assert tail.new() == (True, [b"a"])
    path.unlink()
    assert tail.new() == (True, [])


def grown(source: Path, target: Path, lines: int) -> None:
    """The first lines of a run's metrics, and the events until then."""
    target.mkdir(exist_ok=True)
    metrics = (source / "metrics.jsonl").read_text().splitlines(keepends=True)[:lines]
    (target / "metrics.jsonl").write_text("".join(metrics))
    kept = []
    for line in (source / "events.jsonl").read_text().splitlines(keepends=True):
        kept.append(line)
        if json.loads(line).get("step") == lines and '"trained"' in line:
            break
    (target / "events.jsonl").write_text("".join(kept))


def test_a_follower_sees_what_a_reader_from_scratch_sees_and_sends_only_what_is_new(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "live"
    grown(run, folder, 10)
    follower = Follower(folder)
    assert follower.look()
    assert not follower.look(), "nothing has changed"
    known = follower.revision
    first = follower.view
    grown(run, folder, 40)
    assert follower.look()
    new = follower.newer(known, 0.0)
    assert new is not None
    revision, told = new
    assert (told["from"], len(told["columns"]["step"]), revision.rows) == (10, 30, 40)
    merged = {name: first["columns"].get(name, [None] * 10) + values for name, values in told["columns"].items()}
    scratch = view_of(load_record(folder))
    assert merged == scratch["columns"]
    assert told["phases"] == scratch["phases"]
    assert follower.newer(revision, 0.0) is None
    grown(run, tmp_path / "resumed", 20)
    (tmp_path / "resumed" / "metrics.jsonl").replace(folder / "metrics.jsonl")
    assert follower.look()
    again = follower.newer(revision, 0.0)
    assert again is not None and again[1]["from"] == 0, "a reader from before a resume gets all of it anew"
    assert update(follower.view, 0)["columns"]["step"] == list(range(1, 21))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(UserError, match="Expecting value"):
        Follower(tmp_path).look()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps with eleven episodes each; steps 9 to 12 were rolled back, and 9 was made again."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    store = TrajectoryStore(folder / "trajectories")
    places = [(0, step) for step in range(1, 13)] + [(1, 9)]
    for generation, step in places:
        rows = to_table(
            [episode("joint" if step > 6 else "reasoning", 1000 * generation + 100 * step + i, i % 3 > 0) for i in range(11)]
        )
        store.write(step, generation, [with_ending(rows, "trained", "", step, WeightVersion(generation, step))])
    return folder


def shelf(folder: Path) -> EpisodeShelf:
    return EpisodeShelf(folder, lambda row: None, lambda generation, step: generation == 1 or step <= 8)


def pages(folder: Path, wanted: Wanted) -> Iterator[dict[str, Any]]:
    after, own = None, shelf(folder)
    while True:
        page = own.page(wanted, after)
        assert len(page["episodes"]) <= PAGE
        yield from page["episodes"]
        if page["next"] is None:
            return
        after = Place.parse(page["next"])


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(), 143), (Wanted(verdict="wrong"), 13 * 4), (Wanted(phase="reasoning"), 66), (Wanted(step=9), 22),
        (Wanted(outcome="rolled_back"), 44), (Wanted(phase="joint", verdict="right", outcome="trained"), 3 * 7),
        (Wanted(words="g1905"), 1), (Wanted(words="nowhere"), 0), (Wanted(step=77), 0),
    ],
)  # fmt: skip
def test_pages_bring_every_wanted_episode_once_newest_first(stored: Path, wanted: Wanted, count: int) -> None:
    found = list(pages(stored, wanted))
    assert len(found) == count == len({each["place"] for each in found})
    order = [Place.parse(each["place"]) for each in found]
    steps = [(place.generation, place.step) for place in order if place]
    assert steps == sorted(steps, reverse=True)


def test_a_search_that_finds_nothing_soon_says_where_to_go_on(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medr3.observe.browsing.LOOKED_AT", 3)
    page = shelf(stored).page(Wanted(phase="reasoning"))
    assert page["episodes"] == []
    assert page["next"] is not None
    assert len(list(pages(stored, Wanted(phase="reasoning")))) == 66


def test_an_episode_is_read_by_its_place(stored: Path) -> None:
    first = shelf(stored).page(Wanted(step=3))["episodes"][4]
    whole = shelf(stored).one(Place.parse(first["place"]) or Place(0, 0, 0))
    assert whole is not None and whole["answer"] == "B"
    assert shelf(stored).one(Place(0, 3, 11)) is None
    assert shelf(stored).one(Place(5, 3, 0)) is None


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Dashboard]:
    dashboard = Dashboard(run, 0)
    yield dashboard
    dashboard.close()


def ask(served: Dashboard, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_served_page_may_ask_its_own_server_alone(served: Dashboard) -> None:
    status, text = ask(served, "/")
    page = Parsed(text)
    assert status == 200
    assert "connect-src 'self'" in page.policy
    assert page.data["live"] is True
    assert page.data["revision"] == str(served.follower.revision)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/episodes", 200), ("/episodes?phase=joint&verdict=right&step=93", 200), ("/episode?place=0.93.0", 200),
        ("/episodes?step=x", 400), ("/episodes?after=../../etc", 400), ("/episode?place=0.93.99", 404), ("/episode", 404),
        ("/report.html", 404), ("/../../etc/passwd", 404), ("/config.json", 404),
    ],
)  # fmt: skip
def test_the_server_answers_these_questions_and_no_others(served: Dashboard, path: str, status: int) -> None:
    assert ask(served, path)[0] == status


def test_a_page_of_elsewhere_cannot_read_it_through_a_name_of_its_own(served: Dashboard) -> None:
    assert ask(served, "/", Host="attacker.example")[0] == 403
    assert ask(served, "/", Host=f"localhost:{served.port}")[0] == 200


def test_it_listens_on_loopback_alone_and_a_taken_port_is_one_line(served: Dashboard, run: Path) -> None:
    assert served._server.server_address[0] == "127.0.0.1"
    with pytest.raises(UserError, match=f"--port {served.port}: cannot listen there"):
        Dashboard(run, served.port)


def test_a_reader_who_comes_back_gets_what_it_missed(run: Path, tmp_path: Path) -> None:
    grown(run, tmp_path / "live", 5)
    dashboard = Dashboard(tmp_path / "live", 0)
    threading.Thread(target=dashboard.watch, daemon=True).start()
    try:
        known = str(dashboard.follower.revision)
        grown(run, tmp_path / "live", 9)
        connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=10)
        connection.request("GET", "/live", headers={"Last-Event-ID": known})
        answer = connection.getresponse()
        lines = [answer.readline() for _ in range(5)]
        told = json.loads(lines[4].removeprefix(b"data: "))
        assert (told["from"], told["columns"]["step"]) == (5, [6, 7, 8, 9])
        connection.close()
    finally:
        dashboard.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["serve", "nowhere"], "nowhere: no such run folder"),
        (["--port", "0", "{empty}"], "is no run folder"),
        (["--address", "http://127.0.0.1:1"], "nothing answers"),
        (["job-1", "--address", "somewhere"], "write it like http://127.0.0.1:8265"),
    ],
)
def test_what_cannot_be_shown_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["dashboard", *(each.format(empty=tmp_path) for each in arguments)])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
