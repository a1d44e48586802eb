"""`medr3 eval`: measure a model, or compare two results. Imports what it needs when it runs, as every command does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medr3.errors import UserError

if TYPE_CHECKING:
    from medr3.config import RunConfig
    from medr3.evaluation.endpoint import EndpointConfig
    from medr3.evaluation.settings import Setting
    from medr3.evaluation.targets import Target

COMPARE = "compare"
DEFAULT_DATASETS = "world/reasoning,world/retrieval,world/joint"
EVALUATIONS = Path("evaluations")

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET] [KEY=VALUE]... | compare A B",
        help="a run, the folder of a Hugging Face model, or with --endpoint nothing; then overrides of the configuration."
        " compare: two results, as files or folders",
    ),
]


def evaluate(
    arguments: Arguments = None,
    checkpoint: Annotated[
        str, typer.Option(help="of a run: last, best (by held-out score), or the step of a kept one")
    ] = "last",
    config: Annotated[Path | None, typer.Option(help="of a model or endpoint: the run configuration to evaluate under")] = None,
    endpoint: Annotated[str, typer.Option(help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")] = "",
    model: Annotated[str, typer.Option(help="the endpoint's name for the model")] = "",
    api: Annotated[
        Literal["completions", "chat"], typer.Option(help="the endpoint's; chat must continue a turn")
    ] = "completions",
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder whose chat template an endpoint's prompts are put into")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="environment variable that holds the endpoint's key")] = "",
    timeout: Annotated[float, typer.Option(help="seconds of one request to the endpoint")] = 120.0,
    dataset: Annotated[
        str,
        typer.Option(
            help="by commas: world/joint and the like, [FORMAT:]PATH[@SPLIT] of questions in any format of medr3 data formats"
        ),
    ] = DEFAULT_DATASETS,
    retrieval: Annotated[
        Literal["on", "closed", "once", "oracle"],
        typer.Option(
            help="on: the model searches; closed: it cannot; once: one search with the question; oracle: gold documents"
        ),
    ] = "on",
    mode: Annotated[Literal["dense", "lexical", "hybrid"] | None, typer.Option(help="of searches")] = None,
    top_k: Annotated[
        str, typer.Option(help="documents per search; several by commas are a sweep; as trained if left out")
    ] = "",
    max_searches: Annotated[str, typer.Option(help="per episode; several by commas are a sweep; as trained if left out")] = "",
    samples: Annotated[int, typer.Option(min=1, help="episodes per question")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy")] = 0.0,
    questions: Annotated[int | None, typer.Option(min=1, help="of each data set; of a file all if left out")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the sample of questions, of sampling and of intervals")] = 0,
    out: Annotated[Path | None, typer.Option(help="a new folder for the results; below evaluations/ if left out")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure a run, a model or an endpoint on held-out questions; or compare two results."""
    words = arguments or []
    if words[:1] == [COMPARE]:
        _compare(words[1:], as_json)
        return
    target, overrides = _split(words)
    from medr3.evaluation.settings import numbers, sweep

    settings = sweep(
        retrieval,
        mode,
        numbers("--top-k", top_k, 1, 100),
        numbers("--max-searches", max_searches, 0, 100),
        samples,
        temperature,
    )
    server = _endpoint(target, endpoint, model, api, api_key_env, timeout)
    if server is None and tokenizer is not None:
        raise UserError("--tokenizer: is for an endpoint; a run or a folder has its own: leave it out")
    chosen, resolved = (None, _config(config, overrides)) if server else _target(target, checkpoint, config, overrides)
    datasets = [name.strip() for name in dataset.split(",") if name.strip()]
    if not datasets:
        raise UserError("--dataset: names nothing: such as world/joint")
    name = chosen.name if chosen else model.replace("/", "-")
    folder = out or EVALUATIONS / f"{name}-{retrieval}-{time.strftime('%Y%m%d-%H%M%S')}"
    _run(resolved, datasets, settings, questions, seed, folder, chosen, server, tokenizer, as_json)


def _run(
    config: RunConfig,
    datasets: list[str],
    settings: list[Setting],
    questions: int | None,
    seed: int,
    out: Path,
    target: Target | None,
    endpoint: EndpointConfig | None,
    tokenizer: Path | None,
    as_json: bool,
) -> None:
    from medr3.evaluation.evaluating import Order
    from medr3.evaluation.evaluating import evaluate as run_evaluation

    order = Order(
        config=config, datasets=datasets, settings=settings, questions=questions, seed=seed, out=out, target=target,
        endpoint=endpoint, tokenizer=tokenizer,
    )  # fmt: skip
    result = run_evaluation(order)
    if as_json:
        cells = [{"setting": cell.setting.model_dump(), "metrics": cell.metrics} for cell in result.cells]
        print(json.dumps({"out": str(out), "cells": cells}, indent=2))
        return
    for cell in result.cells:
        accuracy = cell.metrics["accuracy"]
        print(f"{accuracy['mean']:.3f} ({accuracy['low']:.3f}–{accuracy['high']:.3f})  {cell.setting.name}")
    print(out / "report.md")


def _compare(words: list[str], as_json: bool) -> None:
    if len(words) != 2:
        raise UserError(f"compare takes two results, got {len(words)}: medr3 eval compare A/result.json B/result.json")
    from medr3.evaluation.comparing import as_text, compare

    compared = compare(Path(words[0]), Path(words[1]))
    print(json.dumps(compared, indent=2) if as_json else as_text(compared))


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The target, unless the first word is an override already."""
    if words and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0], words[1:]
    return None, words


def _target(target: str | None, checkpoint: str, config: Path | None, overrides: list[str]) -> tuple[Target, RunConfig]:
    from medr3.cli_common import load_config
    from medr3.ops.local import find_run

    folder = Path(target) if target else None
    if folder is not None and _is_model(folder):
        resolved = _config(config, overrides)
        from medr3.evaluation.targets import folder_target

        return folder_target(folder, resolved), resolved
    run = find_run(target)
    if config is not None:
        raise UserError(f"--config: {run} has its own configuration; change single settings with KEY=VALUE")
    if not (run / "config.json").is_file():
        raise UserError(f"{run}: has no config.json, so it is neither a run nor the folder of a Hugging Face model")
    resolved = load_config(run / "config.json", overrides)
    from medr3.evaluation.targets import run_target

    return run_target(run, resolved, checkpoint), resolved


def _is_model(folder: Path) -> bool:
    """A Hugging Face folder says which model it is; a run's config.json does not."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and ("model_type" in found or "architectures" in found)


def _config(config: Path | None, overrides: list[str]) -> RunConfig:
    from medr3.cli_common import load_config

    if config is None:
        raise UserError("--config: name the configuration to evaluate under, such as --config configs/demo.yaml")
    return load_config(config, overrides)


def _endpoint(target: str | None, url: str, model: str, api: str, api_key_env: str, timeout: float) -> EndpointConfig | None:
    if not url:
        if model:
            raise UserError("--model: is the endpoint's name for its model: name the server with --endpoint URL")
        return None
    if target is not None:
        raise UserError(f"{target}: --endpoint was named too, and only one of them can be evaluated: leave one out")
    if not model:
        raise UserError("--endpoint: name the model that the server has, with --model NAME")
    from pydantic import ValidationError

    from medr3.evaluation.endpoint import EndpointConfig

    try:
        return EndpointConfig.model_validate(
            {"url": url, "model": model, "api": api, "api_key_env": api_key_env, "timeout_s": timeout}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = {"url": "--endpoint", "timeout_s": "--timeout"}.get(str(first["loc"][0]), "--endpoint")
        raise UserError(f"{option}: {first['msg'].removeprefix('Value error, ')}") from None
