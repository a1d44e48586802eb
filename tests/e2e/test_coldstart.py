"""Cold start with real parts: the retrieval service, a learner's process, and vLLM's own server as the teacher."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medr3.cli import app
from medr3.config import load
from medr3.errors import UserError
from medr3.run.services import prepare_model
from medr3.synthesis.pipeline import QUESTIONS
from tasks.world import Universe
from tests.e2e.vllm_server import vllm_server
from tests.student import student_model, student_tokenizer

pytestmark = pytest.mark.e2e

QUESTIONS_ASKED = 6
ORDER = ["data", "synthesize", "--documents", "5000", "--questions", str(QUESTIONS_ASKED)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert CliRunner().invoke(app, [*ORDER, "--gate", "none", "--out", str(folder)]).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def model(made: Path) -> Path:
    texts = [json.loads(line)["text"] for line in (made / "corpus.jsonl").read_text().splitlines()[:400]]
    return student_model(student_tokenizer(made / "model", texts, 1_500))


@pytest.mark.timeout(600)
def test_a_run_begins_with_what_the_oracle_found_through_the_retrieval_service(
    ray_session: None, made: Path, model: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    order = [
        "data",
        "coldstart",
        str(made / QUESTIONS),
        "--student",
        str(model),
        "--out",
        str(first),
        "--config",
        "configs/demo.yaml",
    ]
    taught = CliRunner().invoke(app, order)
    assert taught.exit_code == 0, taught.output
    settings = [
        f"run.folder={tmp_path / 'run'}",
        f"model.path={model}",
        f"cold_start.episodes=[{first}]",
        "cold_start.epochs=1",
    ]
    config = load(Path("configs/demo.yaml"), [*settings, "cold_start.batch_size=2", "cold_start.learning_rate=0.01"])
    universe, lines = Universe.build(config.world, 0), list[str]()
    folder = asyncio.run(prepare_model(config, universe, tmp_path, lines.append))
    report = json.loads((folder / "cold_start.json").read_text())
    assert folder == tmp_path / "run" / "cold_start" and report["held_out_loss"] < report["held_out_loss_before"], lines
    assert asyncio.run(prepare_model(config, universe, tmp_path, lines.append)) == folder  # a resumed run takes it as it is
    config.model.path = None
    (folder / "cold_start.json").unlink()
    with pytest.raises(UserError, match=r"model\.path"):
        asyncio.run(prepare_model(config, universe, tmp_path, lines.append))


@pytest.mark.timeout(900)
def test_a_server_teaches_through_the_protocol_and_every_episode_has_its_reason(
    made: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cold"
    with vllm_server(str(model), "tiny", tmp_path / "server.log", max_model_len=4_096) as url:
        taught = CliRunner().invoke(
            app,
            [
                "data", "coldstart", str(made / QUESTIONS), "--student", str(model), "--out", str(out), "--endpoint", url,
                "--model", "tiny", "--turn-tokens", "24", "--samples", "2", "--timeout", "60", "--attempts", "3", "--json",
            ],
        )  # fmt: skip
        tried = CliRunner().invoke(
            app,
            [
                *ORDER, "--out", str(tmp_path / "tried"), "--gate", "endpoint", "--endpoint", url, "--model", "tiny", "--template",
                "--samples", "1",
            ],
        )  # fmt: skip
    assert isinstance(taught.exception, UserError) and "no episode passed the filters" in str(taught.exception)
    summary = json.loads((out / "coldstart.json").read_text())
    assert sum(summary["rejected"].values()) == 2 * QUESTIONS_ASKED and "failed" not in summary["rejected"]
    said = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(said) == 2 * QUESTIONS_ASKED and any(each["text"] for each in said)
    assert tried.exit_code == 0, tried.output  # a model that knows nothing finds no question too easy
    assert json.loads((tmp_path / "tried" / "synthesis.json").read_text())["questions"] == QUESTIONS_ASKED
