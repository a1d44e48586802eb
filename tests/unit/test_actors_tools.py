"""The tools beside search: what they answer, what they say of wrong arguments, and that what fails voids the group."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from actors.config import EpisodeBudget, RolloutConfig
from actors.engine import Completion
from actors.episodes import EpisodeRunner
from actors.messages import GroupRequest, GroupVoided
from actors.tokens import EpisodeTokenizer
from actors.tools import Tool, ToolAnswer, ToolFailed, ToolRejected, ToolTimeout, build_tools, close_tools
from actors.tools_config import JsonApiConfig, ReasonConfig, ToolConfig, unknown_tools
from actors.tools_json_api import JsonApi
from actors.tools_read import DocumentReader
from actors.tools_reason import ClinicalReasoner, Condition, read_table
from retrieval_service.answering import Answering
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.messages import SearchFailure
from retrieval_service.types import RetrievalError, RetrievalTimeout, SearchQuery, SearchResult
from rewards.config import RewardRecipe, RewardTerm
from tasks.questions import Document, Question
from tests.e2e.actors_tiny_model import build_byte_tokenizer
from trajectories.schema import Episode, VersionSpan, check

QUESTION = Question(id="q1", text="what dose ?", kind="number", gold="7", collection="world-1")
TOKENIZER = EpisodeTokenizer(build_byte_tokenizer(), tools=True)
LONG = "lomab heals. " * 20 + "µg/m² 心筋梗塞 " * 10


class Index:
    """A real index, asked directly instead of over Serve."""

    def __init__(self, folder: Path) -> None:
        documents = [
            Document(id="d1", text="lomab dose 7", title="dose", collection="world-1", evidence_level=2),
            Document(id="D1", text="upper case", collection="world-1"),
            Document(id="long text", text=LONG, collection="world-1"),
            Document(id="d2", text="another world", collection="world-2"),
            Document(id="trial 2", text="a number in its name", collection="world-1"),
        ]
        HybridIndex.build(documents, folder, RetrievalConfig())
        self._answering = Answering(HybridIndex.load(folder, RetrievalConfig()), 100)

    async def search(self, query: SearchQuery) -> SearchResult:
        [answer] = self._answering.answer([query])
        if isinstance(answer, SearchFailure):
            raise RetrievalError(answer.reason)
        return answer


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index(tmp_path_factory.mktemp("index") / "built")


def read(index: Index, arguments: str, page_tokens: int = 100) -> ToolAnswer:
    reader = DocumentReader(index, lambda text: TOKENIZER.pages(text, page_tokens))
    return asyncio.run(reader.call(arguments, QUESTION))


def test_a_document_is_read_in_full_by_its_id(index: Index) -> None:
    answer = read(index, "d1")
    assert [(hit.id, hit.text, hit.evidence_level) for hit in answer.hits] == [("d1", "lomab dose 7", 2)]
    assert (answer.note, len(answer.origin) > 10) == ("", True)
    assert read(index, "D1").hits[0].text == "upper case", "ids differ by case"
    assert read(index, "trial 2").hits[0].text == "a number in its name"
    assert read(index, " trial 2 1 ").hits[0].id == "trial 2"


def test_pages_tile_a_document_and_never_cut_a_character(index: Index) -> None:
    shown, page = "", 1
    while (answer := read(index, f"long text {page}")).hits:
        text, _, place = answer.hits[0].text.rpartition(" (page ")
        assert place.startswith(f"{page} of ")
        shown += text
        page += 1
    assert shown == LONG
    assert page > 3
    assert answer.note == f"document long text has no page {page}, its last is {page - 1}"


@given(st.text(max_size=80), st.integers(1, 20))
def test_pages_hold_the_whole_text_whatever_it_is(text: str, tokens: int) -> None:
    pages = TOKENIZER.pages(text, tokens)
    assert "".join(pages) == text
    assert all(len(TOKENIZER.tags.spell(page)) <= tokens + 4 for page in pages)


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ("", "read needs a document id and may have a page"),
        ("d9", "no document d9"),
        ("d2", "no document d2"),  # of another collection: out of reach
        ("d9 3", "no document d9"),
        ("d1 2", "document d1 has no page 2, its last is 1"),
        ("d1 0", "document d1 has no page 0, its last is 1"),
        ("d1 ²", "no document d1 ²"),
        ("d1 99999999999999999999", "no document d1 99999999999999999999"),
        ("x" * 300, "no document " + "x" * 80),
    ],
)
def test_wrong_arguments_of_read_are_an_observation(index: Index, arguments: str, note: str) -> None:
    answer = read(index, arguments)
    assert (answer.hits, answer.note) == ((), note)


TABLE = {
    "adult": {
        "kavan": {"prior": 0.2, "findings": {"Fever": 0.9, "stiff  neck": 0.3}},
        "muzel": {"prior": 0.8, "findings": {"fever": 0.1}},
        "lozes": {"prior": 0.0, "findings": {"fever": 1}},
    }
}
CSV = """context,condition,finding,probability
adult,kavan,,0.2
adult,kavan,fever,0.9
adult,kavan,stiff neck,0.3
adult,muzel,,0.8
adult,muzel,fever,0.1
adult,lozes,,0
adult,lozes,fever,1
"""


def reasoner(table: object = TABLE, **settings: object) -> ClinicalReasoner:
    read_in = read_table(json.dumps(table).encode(), Path("t.json"))
    return ClinicalReasoner(read_in, **({"unlisted": 0.01, "shown": 5, "origin": "t"} | settings))


def test_the_reasoner_applies_bayes_rule() -> None:
    fever = 0.2 * 0.9, 0.8 * 0.1
    both = 0.2 * 0.9 * 0.3, 0.8 * 0.1 * 0.01
    assert reasoner().posterior("adult", ["fever"]) == pytest.approx(
        {"kavan": fever[0] / sum(fever), "muzel": fever[1] / sum(fever)}
    )
    assert reasoner().posterior("adult", ["fever", "stiff neck"]) == pytest.approx(
        {"kavan": both[0] / sum(both), "muzel": both[1] / sum(both)}
    )
    assert reasoner().answer(" Adult : FEVER ; stiff neck; fever ") == "kavan 0.985; muzel 0.015"
    assert reasoner(shown=1).answer("adult: fever") == "kavan 0.692"


def test_a_table_reads_the_same_from_json_and_from_csv() -> None:
    assert read_table(CSV.encode(), Path("t.csv")) == read_table(json.dumps(TABLE).encode(), Path("t.JSON"))
    assert read_table(("\ufeff" + CSV).encode(), Path("t.csv"))["adult"]["muzel"] == Condition(0.8, {"fever": 0.1})


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=200))
def test_many_small_factors_do_not_vanish(factors: list[float]) -> None:
    findings = {f"f{i}": factor for i, factor in enumerate(factors)}
    table = {"c": {"a": {"prior": 0.5, "findings": findings}, "b": {"prior": 0.5, "findings": findings}}}
    assert reasoner(table).posterior("c", list(findings)) == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ("", "reason needs a context, a colon, and findings with semicolons between them"),
        ("adult", "reason needs a context"),
        ("adult: ; ;", "reason needs a context"),
        ("child: fever", "unknown context child; known: adult"),
        ("adult: fever; cough; pain", "unknown finding cough, pain; known in adult: fever, stiff neck"),
        ("adult:" + ";".join(map(str, range(70))), "70 findings, at most 64"),
    ],
)
def test_wrong_arguments_of_reason_are_an_observation(arguments: str, note: str) -> None:
    assert note in reasoner().answer(arguments)


def test_findings_that_no_condition_can_have_together() -> None:
    table = {"c": {"a": {"prior": 1, "findings": {"x": 1, "y": 0}}}}
    assert reasoner(table).answer("c: x; y") == "no condition of this context can have all of these findings"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "", "a table is a .json or a .csv file"),
        ("t.json", "[", "Expecting value"),
        ("t.json", "[]", "the file must be an object, not list"),
        ("t.json", "{}", "it holds no condition"),
        ("t.json", '{"c": {"a": {"prior": 2}}}', "c / a / prior: 2 is no probability"),
        ("t.json", '{"c": {"a": {"prior": NaN}}}', "nan is no probability"),
        ("t.json", '{"c": {"a": {"prior": true}}}', "True is no probability"),
        ("t.json", '{"c": {"a": {"findings": {}}}}', "c / a / prior: None is no probability"),
        ("t.json", '{"c": {"a": {"prior": 1, "finding": {}}}}', "unknown key 'finding'"),
        ("t.json", '{"c": {"a": {"prior": 0}}}', "no condition of context 'c' has a prior above 0"),
        ("t.csv", "context,condition\n", "the first line must be context,condition,finding,probability"),
        ("t.csv", CSV + "adult,kavan\n", "line 9 does not have 4 columns"),
        ("t.csv", CSV + "adult,kavan,pain,much\n", "line 9: 'much' is no probability"),
        ("t.csv", "\xff", "codec"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        ClinicalReasoner.from_config(ReasonConfig(table=path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"rollout\.tools\.think: .*cannot be read: No such file"):
        build_tools({"think": ReasonConfig(table=tmp_path / "none.json")}, None, TOKENIZER)


class Api(BaseHTTPRequestHandler):
    """What a search API may do, by its path."""

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, query: str) -> None:
        kind = urlsplit(self.path).path.strip("/")
        if kind == "slow":
            time.sleep(2)
        if kind == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        hits = [{"doc": {"body": f"{query} {i}", "name": f"n{i}"}} for i in range(3)]
        content = {
            "large": b'{"data": "' + b"x" * 3000 + b'"}', "text": b"<html>", "deep": b"[" * 100_000,
            "surrogate": b'{"data": {"hits": [{"doc": {"body": "a\\ud800b", "name": 7}}]}}',
            "empty": b'{"data": {"hits": []}}', "other": b'{"data": {}}', "wrong": b'{"data": {"hits": {}}}',
            "untold": b'{"data": {"hits": [{"doc": {}}]}}', "number": b'{"data": {"hits": [{"doc": {"body": 7}}]}}',
        }.get(kind, json.dumps({"data": {"hits": hits}}).encode())  # fmt: skip
        secret = self.headers.get("X-Key", "")
        self.send_response({"busy": 429, "down": 500}.get(kind, 200 if kind != "locked" or secret == "s3cret" else 403))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer(parse_qs(urlsplit(self.path).query)["q"][0])

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(f"{asked['input']['text']} {asked['size']}")


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url: str, query: str = "dose & 7", **settings: object) -> ToolAnswer:
    fields = {
        "results": "data.hits",
        "text": "doc.body",
        "id": "doc.name",
        "k": 2,
        "deadline_s": 5,
        "max_bytes": 2048,
    } | settings

    async def once() -> ToolAnswer:
        tool = JsonApi(JsonApiConfig(url=url + ("" if "body" in settings else "?q={query}&n={k}"), **fields))
        try:
            return await tool.call(query, QUESTION)
        finally:
            await tool.close()

    return asyncio.run(once())


def test_a_json_api_is_asked_and_read_as_configured(api: str) -> None:
    answer = ask(f"{api}/ok", "dose & 7 / ü")
    assert [hit.text for hit in answer.hits] == ["dose & 7 / ü 0", "dose & 7 / ü 1"], "percent-encoded, and cut at k"
    assert answer.hits[0].id == f"{api.removeprefix('http://')}/n0"
    body = {"input": {"text": "about {query}"}, "size": "{k}"}
    assert ask(f"{api}/ok", 'a"b', method="POST", body=body).hits[0].text == 'about a"b 2 0'
    assert ask(f"{api}/ok", max_characters=4).hits[0].text == "dose"
    assert ask(f"{api}/empty").hits == ()
    surrogate = ask(f"{api}/surrogate").hits[0]
    assert (surrogate.text, surrogate.id[-2:]) == ("a?b", "/7")
    assert ask(f"{api}/ok", " ").note == "this tool needs a query"


def test_a_header_comes_from_the_environment(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_KEY", "s3cret")
    assert ask(f"{api}/locked", header_variables={"X-Key": "TOOL_KEY"}).hits
    with pytest.raises(ToolFailed, match="status 403") as error:
        ask(f"{api}/locked")
    assert "s3cret" not in str(error.value)
    monkeypatch.delenv("TOOL_KEY")
    with pytest.raises(ValueError, match="environment variable TOOL_KEY is not set"):
        ask(f"{api}/locked", header_variables={"X-Key": "TOOL_KEY"})


@pytest.mark.parametrize(
    ("kind", "failure", "message"),
    [
        ("slow", ToolTimeout, "no answer within 0.3 s"),
        ("busy", ToolRejected, "status 429"),
        ("down", ToolFailed, "status 500"),
        ("elsewhere", ToolFailed, "status 302"),
        ("large", ToolFailed, "more than 2048 bytes"),
        ("text", ToolFailed, "no JSON"),
        ("deep", ToolFailed, "no JSON"),
        ("other", ToolFailed, "nothing at 'data.hits'"),
        ("wrong", ToolFailed, "stands dict, no list"),
        ("untold", ToolFailed, "result 0 has nothing at 'doc.body'"),
        ("number", ToolFailed, "result 0 has no text"),
    ],
)
def test_how_an_api_fails(api: str, kind: str, failure: type[ToolFailed], message: str) -> None:
    with pytest.raises(failure, match=message) as error:
        ask(f"{api}/{kind}", deadline_s=0.3 if kind == "slow" else 5, max_bytes=1 << 20 if kind == "deep" else 2048)
    assert type(error.value) is failure


def test_an_api_that_is_not_there() -> None:
    with pytest.raises(ToolFailed, match=r"127\.0\.0\.1:9: ConnectError"):
        ask("http://127.0.0.1:9/ok")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "ftp://a/{query}"}, "must begin with http:// or https://"),
        ({"url": "file:///etc/{query}"}, "must begin with http:// or https://"),
        ({"url": "http:///{query}"}, "name a host"),
        ({"url": "http://{query}/"}, "in the host"),
        ({"url": "http://user:pass@a/{query}"}, "in the host"),
        ({"url": "http://a/"}, "names {query}"),
        ({"url": "http://a/{query}/{page}"}, "unknown {page}"),
        ({"url": "http://a/{query}/{k"}, "write {{ for a brace"),
        ({"url": "http://a/{query}", "method": "POST"}, "a POST needs a body"),
        ({"url": "http://a/{query}", "body": {}}, "a GET has none"),
        ({"url": "http://a/{query}", "retries": 3}, "Extra inputs"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("{", r"\{")):
        JsonApiConfig(**fields)


def test_tools_are_configured_by_name() -> None:
    config = RolloutConfig(tools={"read": {"kind": "read"}, "web": {"kind": "json_api", "url": "https://a/?q={query}"}})
    assert unknown_tools(("read", "reason"), config.tools) == ["reason"]
    for bad in ({"Read": {"kind": "read"}}, {"read": {"kind": "telepathy"}}, {"read it": {"kind": "read"}}):
        with pytest.raises(ValidationError):
            RolloutConfig(tools=bad)
    assert TypeAdapter(ToolConfig).validate_python({"kind": "read"}).page_tokens == 512


class Script:
    """A policy that says what it is told to, turn after turn, cut at the limit."""

    def __init__(self, *turns: str) -> None:
        self.turns = turns

    async def generate(self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, **sampling: object) -> Completion:
        ids = TOKENIZER.tags.spell(self.turns[int(request_id.rsplit(".", 1)[1])])[:max_tokens]
        return Completion(ids, [-0.5] * len(ids), [VersionSpan(1, 0, 0, len(ids))])


def roll_out(tools: dict[str, Tool], searcher: object, *turns: str, named: tuple[str, ...] | None = None) -> Episode:
    budget = EpisodeBudget(tools=tuple(tools) if named is None else named, max_turn_tokens=500, max_response_tokens=4000)
    recipe = RewardRecipe(terms=[RewardTerm(name="correct")])
    request = GroupRequest("run", "g", 0, "joint", QUESTION, 1, 1.0, 5, budget, recipe)

    async def run() -> list[Episode]:
        try:
            return await EpisodeRunner(Script(*turns), TOKENIZER, searcher, "hybrid", 8000, tools).run(request)
        finally:
            await close_tools(tools)

    [episode] = asyncio.run(run())
    return episode


def test_a_whole_episode_with_every_tool(index: Index, api: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    web = {
        "kind": "json_api",
        "url": f"{api}/ok?q={{query}}",
        "results": "data.hits",
        "text": "doc.body",
        "id": "doc.name",
        "k": 1,
    }
    configs = {"read": {"kind": "read"}, "reason": {"kind": "reason", "table": str(path)}, "web": web}
    tools = build_tools(RolloutConfig(tools=configs).tools, index, TOKENIZER)
    episode = roll_out(
        tools, index, "<think> first <call> read d1 </call>", "then <call> reason adult: fever </call>", "<call>web <b>7</b></call>",
        "so <call> read d9 </call>", "7 </think> <answer> 7 </answer>",
    )  # fmt: skip
    assert (episode.finish, episode.answer, check(asdict(episode))) == ("answer", "7", [])
    assert [(search.tool, search.turn, search.query) for search in episode.searches] == [
        ("read", 0, "d1"), ("reason", 1, "adult: fever"), ("web", 2, "<b>7</b>"), ("read", 3, "d9"),
    ]  # fmt: skip
    assert [search.documents for search in episode.searches] == [
        ["lomab dose 7"], ["kavan 0.692; muzel 0.308"], ["<b>7</b> 0"], ["no document d9"],
    ]  # fmt: skip
    assert [len(search.document_ids) for search in episode.searches] == [1, 0, 1, 0]
    assert "<document> kavan 0.692; muzel 0.308 </document>" in episode.text
    shown = "".join(TOKENIZER.tags.text(episode.token_ids[s.start : s.end]) for s in episode.segments if s.source == "document")
    assert shown.count("<document>") == 4
    assert not any(episode.loss_mask[i] for s in episode.segments if s.source == "document" for i in range(s.start, s.end))


class Broken:
    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    async def call(self, arguments: str, question: Question) -> ToolAnswer:
        raise self.failure

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "failure", [ToolFailed("status 500"), ToolTimeout("late"), ToolRejected("busy"), RetrievalTimeout("late")]
)
def test_a_tool_that_fails_voids_the_group(failure: Exception) -> None:
    message = f"group g: tool read failed: {type(failure).__name__}: {failure}"
    with pytest.raises(GroupVoided, match=message):
        roll_out({"read": Broken(failure)}, None, "<think> <call> read d1 </call>")


def test_a_budget_that_names_a_tool_which_is_not_there_is_told_so() -> None:
    with pytest.raises(GroupVoided, match=r"may call 'read', which no tool is named: add it to rollout\.tools"):
        roll_out({}, None, "<think>", named=("read",))


def test_anything_with_a_call_can_be_a_tool() -> None:
    class Echo(Broken):
        async def call(self, arguments: str, question: Question) -> ToolAnswer:
            return ToolAnswer(note=f"{arguments} </document> </think>")

    make: Callable[[], Tool] = lambda: Echo(ToolFailed(""))  # noqa: E731
    episode = roll_out({"echo": make()}, None, "<think> <call> echo 7 </call>", "</think> <answer> 7 </answer>")
    assert "<document> 7   </document>" in episode.text, "a tool's own tags are taken out"
    assert episode.finish == "answer"
