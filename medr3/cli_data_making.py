"""`medr3 data synthesize`, `extract` and `coldstart`: questions and first episodes are made, not found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medr3.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medr3.config import RunConfig
    from medr3.evaluation.endpoint import EndpointConfig
    from medr3.synthesis.material import Material
    from medr3.synthesis.producing import Gate

BAD_ROWS_EXIT = 1
SHOWN_BAD = 20
EXTRACTED_TOKENS = 4_096  # 40 triples of about 60 tokens, and the object around them

Url = Annotated[str, typer.Option("--endpoint", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")]
Model = Annotated[str, typer.Option("--model", help="the endpoint's name for its model")]
Key = Annotated[str, typer.Option("--api-key-env", help="environment variable that holds the endpoint's key")]
Timeout = Annotated[float, typer.Option("--timeout", help="seconds of one request to the endpoint")]
Attempts = Annotated[int, typer.Option("--attempts", min=1, max=20, help="at one request, before it counts as failed")]
Api = Annotated[
    Literal["completions", "chat"], typer.Option("--api", help="the endpoint's, for episodes; chat must continue a turn")
]
Out = Annotated[Path, typer.Option("--out", help="folder; one that was begun is gone on with")]
Seed = Annotated[int, typer.Option("--seed", help="the same seed makes the same questions")]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def synthesize(
    out: Out,
    questions: Annotated[int, typer.Option(min=1, help="how many")] = 2_100,
    triples: Annotated[
        list[Path] | None,
        typer.Option(help="CSV, TSV, Parquet or MRREL.RRF of a knowledge graph; the large world's if left out"),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="JSON lines of the documents that the triples name")] = None,
    documents: Annotated[int, typer.Option(help="of the large world, up to a million")] = 20_000,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="of the large world: the collection that training never sees")
    ] = False,
    sampler: Annotated[
        str, typer.Option(help="max_chain, augmented_chain, community_core_path, dual_core_bridge, mixed")
    ] = "mixed",
    min_hops: Annotated[int, typer.Option(min=1, max=12, help="statements between what is named and what is asked")] = 3,
    max_hops: Annotated[int, typer.Option(min=1, max=12, help="the most of them")] = 5,
    rare_below: Annotated[int, typer.Option(min=2, help="seeds are entities that stand in fewer documents")] = 6,
    gate: Annotated[
        Literal["reader", "endpoint", "policy", "none"],
        typer.Option(help="who tries each question: a searching reader, the endpoint, engines of --policy, nobody"),
    ] = "reader",
    rounds: Annotated[int, typer.Option(min=1, max=10, help="of searches in a row that the reader makes")] = 3,
    samples: Annotated[int, typer.Option(min=1, help="tries of a model at each question")] = 4,
    policy: Annotated[Path | None, typer.Option(help="model folder whose engines try the questions")] = None,
    config: Annotated[Path | None, typer.Option(help="run configuration that --policy is served under")] = None,
    endpoint: Url = "",
    model: Model = "",
    api: Api = "completions",
    api_key_env: Key = "",
    timeout: Timeout = 60.0,
    attempts: Attempts = 4,
    template: Annotated[bool, typer.Option("--template", help="questions in plain sentences even with an endpoint")] = False,
    seed: Seed = 0,
    allow_bad: Annotated[int, typer.Option(min=0, help="so many bad rows among the triples are no failure")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Make multi-hop questions from a knowledge graph; each is checked, tried, and kept with the documents that answer it."""
    from medr3.synthesis.pipeline import Plan
    from medr3.synthesis.producing import Order, produce
    from tasks.graph.sampling import SAMPLERS, Bounds

    if sampler not in SAMPLERS:
        raise UserError(
            f"--sampler {sampler}: no such sampler{did_you_mean(sampler, SAMPLERS)}; there are {', '.join(SAMPLERS)}"
        )
    if max_hops < min_hops:
        raise UserError(f"--max-hops {max_hops}: is below --min-hops {min_hops}")
    server = endpoint_of(endpoint, model, api_key_env, timeout, attempts, api)
    tried = _gate(gate, rounds, samples, policy, config, server)
    material = _material(triples or [], corpus, documents, seed, held_out=held_out)
    plan = Plan(questions, sampler, seed, Bounds(min_hops, max_hops), rare_below)
    summary = produce(Order(material, plan, out, tried, server, not template), say)
    print(json.dumps(summary, indent=2, ensure_ascii=False) if as_json else _told(summary, out))
    _refuse_bad(material, out, allow_bad)


def _told(summary: dict[str, object], out: Path) -> str:
    rejected = summary["rejected"]
    assert isinstance(rejected, dict), "the pipeline counts by reason"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items()) or "none"
    return (
        f"{summary['questions']:,} questions of {summary['drafts']:,} drafts in {out / 'questions.jsonl'}; rejected: {reasons}"
    )


def _material(triples: list[Path], corpus: Path | None, documents: int, seed: int, *, held_out: bool) -> Material:
    from medr3.synthesis.material import of_atlas, of_files

    if triples:
        return of_files(triples, corpus)
    if corpus is not None:
        raise UserError(f"--corpus {corpus}: name the triples that stand in it, with --triples; medr3 data extract makes them")
    from pydantic import ValidationError

    from tasks.atlas.config import AtlasConfig

    try:
        return of_atlas(AtlasConfig(seed=seed, documents=documents), held_out=held_out)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--documents {documents}: {reason}") from None


def _gate(
    kind: str, rounds: int, samples: int, policy: Path | None, config: Path | None, server: EndpointConfig | None
) -> Gate:
    from medr3.synthesis.producing import Gate

    resolved: RunConfig | None = None
    if kind == "endpoint" and server is None:
        raise UserError("--gate endpoint: name the server with --endpoint and --model")
    if kind == "policy":
        if policy is None or config is None:
            raise UserError("--gate policy: name a model folder with --policy and its run configuration with --config")
        from medr3.cli_common import load_config

        resolved = load_config(config, [])
    return Gate(kind, rounds, samples, policy=policy, config=resolved)


def _refuse_bad(material: Material, out: Path, allow_bad: int) -> None:
    """Bad rows by file and row on stderr, all of them in a file; the exit code says whether there are more than allowed."""
    bad = material.bad
    for row in bad[:SHOWN_BAD]:
        say(f"medr3: {row}")
    if bad:
        kept = out / "bad_rows.txt"
        kept.write_text("".join(f"{row}\n" for row in bad), encoding="utf-8")
        say(f"medr3: {len(bad):,} bad rows were left out; all of them are in {kept}")
    if len(bad) > allow_bad:
        raise typer.Exit(BAD_ROWS_EXIT)


def endpoint_of(url: str, model: str, key: str, timeout: float, attempts: int, api: str) -> EndpointConfig | None:
    """The server that the options name, or none."""
    if not url:
        if model:
            raise UserError("--model: is the endpoint's name for its model: name the server with --endpoint URL")
        return None
    if not model:
        raise UserError("--endpoint: name the model that the server has, with --model NAME")
    from pydantic import ValidationError

    from medr3.evaluation.endpoint import EndpointConfig

    try:
        return EndpointConfig.model_validate(
            {"url": url, "model": model, "api": api, "api_key_env": key, "timeout_s": timeout, "attempts": attempts}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = {"url": "--endpoint", "timeout_s": "--timeout"}.get(str(first["loc"][0]), "--endpoint")
        raise UserError(f"{option}: {first['msg'].removeprefix('Value error, ')}") from None


def coldstart(
    questions: Annotated[
        Path, typer.Argument(metavar="QUESTIONS", help="a file of questions, such as synthesize's questions.jsonl")
    ],
    student: Annotated[
        Path, typer.Option(help="folder of the model, or of its tokenizer alone, that will learn from the episodes")
    ],
    out: Out,
    corpus: Annotated[Path | None, typer.Option(help="JSON lines to search in; beside the questions if left out")] = None,
    index: Annotated[Path | None, typer.Option(help="folder of a built index to search in")] = None,
    config: Annotated[
        Path | None, typer.Option(help="run configuration whose retrieval service is searched; without, this process searches")
    ] = None,
    count: Annotated[int | None, typer.Option("--questions", min=1, help="so many; all if left out")] = None,
    endpoint: Url = "",
    model: Model = "",
    api: Api = "completions",
    api_key_env: Key = "",
    timeout: Timeout = 120.0,
    attempts: Attempts = 4,
    samples: Annotated[int, typer.Option(min=1, help="of the endpoint, for each question")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="of the endpoint")] = 0.7,
    hint: Annotated[bool, typer.Option(help="show the endpoint the masked way; it is never written down")] = True,
    per_step: Annotated[bool, typer.Option("--per-step", help="a row for each turn, as R3-RAG; else whole episodes")] = False,
    top_k: Annotated[int, typer.Option(min=1, max=100, help="documents per search")] = 5,
    mode: Annotated[Literal["dense", "lexical", "hybrid"], typer.Option(help="of searches")] = "hybrid",
    turn_tokens: Annotated[int, typer.Option(min=8, help="of one turn of the teacher")] = 2_048,
    min_turns: Annotated[int, typer.Option(min=1, help="of the teacher, or the episode is left out")] = 3,
    max_calls: Annotated[int, typer.Option(min=1, help="searches, or the episode is left out")] = 10,
    max_tokens: Annotated[int, typer.Option(min=16, help="of an episode, or it is left out")] = 32_000,
    noisy: Annotated[float, typer.Option(min=0, max=1, help="share of the episodes that meet failing searches")] = 0.3,
    failing: Annotated[float, typer.Option(min=0, max=1, help="share of the searches of such an episode that fail")] = 0.25,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Make first episodes: a teacher answers by searching, and what passes the filters is written in the student's tokens."""
    from actors.teaching.filters import FilterRules
    from actors.teaching.noise import ToolNoise
    from medr3.synthesis.opening import open_phrases, open_questions, open_search
    from medr3.synthesis.teaching import Lesson, School, teach

    if not (student / "tokenizer_config.json").is_file():
        raise UserError(f"--student {student}: has no tokenizer_config.json: name the folder of the model that will learn")
    server = endpoint_of(endpoint, model, api_key_env, timeout, attempts, api)
    asked = open_questions(questions, count, by_oracle=server is None)
    resolved: RunConfig | None = None
    if config is not None:
        from medr3.cli_common import load_config

        resolved = load_config(config, [])
    lesson = Lesson(
        samples=samples if server else 1, temperature=temperature if server else 0.0, top_k=top_k, mode=mode,
        max_searches=max_calls, max_turn_tokens=turn_tokens, hint=hint, per_step=per_step, seed=seed,
        noise=ToolNoise(noisy, failing), rules=FilterRules(min_turns, max_tokens, max_calls),
    )  # fmt: skip
    school = School(asked, open_phrases(questions), student, out, lesson, server)
    summary = teach(school, open_search(questions, corpus, index, resolved), say)
    rejected = summary["rejected"]
    assert isinstance(rejected, dict), "rejections are counted by reason"
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in rejected.items()) or "none"
    line = (
        f"{summary['episodes']:,} episodes, {summary['calls_mean']:.2f} executed calls each, in {summary['rows']:,} rows in {out};"
        f" rejected: {reasons}"
    )
    print(json.dumps(summary, indent=2, ensure_ascii=False) if as_json else line)
    if not summary["episodes"]:
        raise UserError(f"{out}: no episode passed the filters; rejected.jsonl says why")


def extract(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="JSON lines of documents")],
    out: Annotated[Path, typer.Option(help="CSV of triples; one that was begun is gone on with")],
    endpoint: Url,
    model: Model,
    api_key_env: Key = "",
    timeout: Timeout = 60.0,
    attempts: Attempts = 4,
    documents: Annotated[int | None, typer.Option(min=1, help="so many; all if left out")] = None,
) -> None:
    """Let a model read triples out of a corpus, for synthesize --triples; what does not stand in the text is left out."""
    import asyncio
    from itertools import islice

    from medr3.synthesis.extraction import extract as run_extraction
    from medr3.synthesis.producing import REPLY_S, as_judge
    from tasks.corpora import read_corpus
    from tasks.rows import FileRefused

    server = endpoint_of(endpoint, model, api_key_env, timeout, attempts, "chat")
    if server is None:
        raise UserError("--endpoint: name the server of the model that reads")
    try:
        read = list(islice(read_corpus(corpus), documents))
    except (FileRefused, OSError) as error:
        raise UserError(str(error)) from None
    if not read:
        raise UserError(f"{corpus}: is empty")
    counts = asyncio.run(run_extraction(read, as_judge(server, EXTRACTED_TOKENS, REPLY_S), out, say))
    print(", ".join(f"{count:,} {name}" for name, count in counts.items()) + f"; in {out}")
