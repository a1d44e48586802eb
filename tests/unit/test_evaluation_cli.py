"""`medr3 eval` as a person meets it: results in a folder, and of every mistake one line before anything is started."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web
from click.testing import Result
from typer.testing import CliRunner

from medr3.cli_eval import evaluate
from medr3.errors import UserError
from medr3.evaluation import endpoint as endpoint_module
from tasks.config import ColdStartConfig
from tasks.tiny_model import make_model, save
from tests.run_folder import RunFolder

DATA = Path(__file__).parents[1] / "data"
DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
MIRAGE = f"mirage:{DATA / 'mirage.json'}"
QUESTION = {"id": "q1", "text": "drug-dose lavan ?", "kind": "text", "gold": "x"}

app = typer.Typer()
app.command("eval")(evaluate)
app.command("other")(lambda: None)  # so that `eval` is a word of the command line, as it is in medr3


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(endpoint_module, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(make_model(ColdStartConfig(hidden_size=64, heads=4, ffn_size=64), seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def letters() -> Iterator[str]:
    """A server of its own thread whose model thinks nothing and always says B."""

    async def complete(_: web.Request) -> web.StreamResponse:
        choice = {"text": "<think> </think> <answer> B ", "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"completion_tokens": 6}})

    loop, started, address = asyncio.new_event_loop(), threading.Event(), []

    async def serve() -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/v1/completions", complete)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(runner.addresses[0][1])
        started.set()
        return runner

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(serve(), loop)
    assert started.wait(10)
    yield f"http://127.0.0.1:{address[0]}/v1"
    asyncio.run_coroutine_threadsafe(runner.result().cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def medr3(*words: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def mistake(*words: Any) -> str:
    done = medr3(*words)
    assert isinstance(done.exception, UserError), (done.output, done.exception)
    assert "\n" not in str(done.exception)
    assert not list(Path().glob("**/*.unfinished"))
    return str(done.exception)


def closed(url: str, *more: Any) -> tuple[Any, ...]:
    return ("--endpoint", url, "--model", "m", "--config", DEMO, "--retrieval", "closed", "--dataset", MIRAGE, *more)


def test_mirage_at_an_endpoint_from_the_command_line_to_the_report(letters: str) -> None:
    done = medr3(*closed(letters), "--out", "found", "--json")
    assert done.exit_code == 0, done.exception
    metrics = json.loads(done.stdout)["cells"][0]["metrics"]
    assert metrics["accuracy"]["mean"] == pytest.approx(3 / 7)
    sources = metrics["by"]["source"]
    assert {name: each["accuracy"]["mean"] for name, each in sources.items()} == {
        "mirage/mmlu": 0.5, "mirage/medqa": 0.5, "mirage/medmcqa": 1.0, "mirage/pubmedqa": 0.0, "mirage/bioasq": 0.0,
    }  # fmt: skip
    assert metrics["accuracy_mean_of_sources"] == pytest.approx(0.4)
    assert sorted(path.name for path in Path("found").iterdir()) == ["report.md", "result.json"]
    assert "0.400" in Path("found/report.md").read_text()
    assert "found exists" in mistake(*closed(letters), "--out", "found")

    assert medr3(*closed(letters), "--out", "again", "--seed", 3).exit_code == 0
    compared = medr3("compare", "found", "again/result.json")
    assert compared.exit_code == 0 and "p = 1.000" in compared.stdout
    assert json.loads(medr3("compare", "found", "again", "--json").stdout)["pairs"][0]["questions"] == 7


def test_a_sample_of_a_file_is_as_large_as_it_was_asked_for(letters: str) -> None:
    assert medr3(*closed(letters), "--out", "few", "--questions", 3).exit_code == 0
    assert len(json.loads(Path("few/result.json").read_text())["questions"]) == 3


def test_mistakes_with_targets(model: Path, tmp_path: Path) -> None:
    assert "no run in" in mistake()
    assert "no-such-run: no such run folder" in mistake("no-such-run")
    assert "--config: name the configuration" in mistake(model)
    assert "has no config.json" in mistake(DATA)
    RunFolder(tmp_path / "young").stop()
    (tmp_path / "young" / "config.json").write_text(json.dumps({"curriculum": {"phases": [{"name": "a"}]}}))
    assert "curriculum.phases.0" in str(medr3("young").exception)


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["model.safetensors"], "holds neither model.safetensors nor"),
        (["chat_template.jinja"], "has no chat template"),
    ],
)
def test_a_model_folder_that_lacks_something_is_refused_by_it(
    model: Path, tmp_path: Path, gone: list[str], reason: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        if path.name not in gone:
            (copy / path.name).write_bytes(path.read_bytes())
    assert reason in mistake(copy, "--config", DEMO, "--dataset", MIRAGE, "--retrieval", "closed")
    (copy / "tokenizer.json").write_text("{")
    assert "its tokenizer does not open" in mistake(copy, "--config", DEMO, "--dataset", MIRAGE, "--retrieval", "closed")


def test_mistakes_with_data_sets(model: Path) -> None:
    at = (model, "--config", DEMO, "--dataset")
    Path("empty.jsonl").touch()
    Path("bad.jsonl").write_text(json.dumps(QUESTION) + "\n" + json.dumps(QUESTION | {"id": "q2", "kind": "guess"}) + "\n")
    Path("good.jsonl").write_text(json.dumps(QUESTION) + "\n")
    Path("long.jsonl").write_text(json.dumps(QUESTION | {"text": "lavan " * 600}) + "\n")
    assert "did you mean world/joint" in mistake(*at, "world/jiont")
    assert "is empty: write one question per line" in mistake(*at, "empty.jsonl")
    assert "bad.jsonl, line 2: kind: Input should be 'choice', 'number' or 'text'" in mistake(*at, "bad.jsonl")
    assert "names nothing" in mistake(*at, ",")
    assert "add retrieval.index=FOLDER" in mistake(*at, "good.jsonl")
    assert "retrieval.index: nowhere does not exist" in mistake(*at[:1], "retrieval.index=nowhere", *at[1:], "good.jsonl")
    assert "1 of 1 questions name no gold documents" in mistake(*at, "good.jsonl", "retrieval.index=.", "--retrieval", "oracle")
    assert "question q1 has a prompt of" in mistake(*at, "long.jsonl", "--retrieval", "closed")


def test_mistakes_with_options(model: Path) -> None:
    at = (model, "--config", DEMO)
    assert "'x' is no whole number from 1 to 100" in mistake(*at, "--top-k", "1,x")
    assert "add --temperature" in mistake(*at, "--samples", 4)
    assert "does not search" in mistake(*at, "--retrieval", "closed", "--max-searches", 1)
    assert "no such setting" in mistake(*at, "rollout.num_engine=2")
    assert "--tokenizer: is for an endpoint" in mistake(*at, "--tokenizer", model)
    assert "name the server with --endpoint" in mistake(*at, "--model", "m")
    assert "compare takes two results" in mistake("compare", "one")
    assert "nowhere: No such file" in mistake("compare", "nowhere", "nowhere")


def test_mistakes_with_endpoints(model: Path) -> None:
    with socket.socket() as bound:  # bound but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        assert "nothing answers" in mistake(*closed(f"http://127.0.0.1:{bound.getsockname()[1]}/v1"))
    assert "must begin with http://" in mistake(*closed("localhost:8000"))
    assert "with --model NAME" in mistake("--endpoint", "http://127.0.0.1:9/v1", "--config", DEMO)
    assert "only one of them" in mistake(model, *closed("http://127.0.0.1:9/v1"))
    assert "has no tokenizer_config.json" in mistake(*closed("http://127.0.0.1:9/v1", "--tokenizer", "nowhere"))
    assert "--timeout" in mistake(*closed("http://127.0.0.1:9/v1", "--timeout", "0"))
