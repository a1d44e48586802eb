"""Bad inputs of every command, as a person might give them, in a folder that holds what they speak of."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from medr3.config import load
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from tasks.questions import Document
from tests.synthetic_run import write_run

ROOT = Path(__file__).parents[1]
DEMO = "configs/demo.yaml"
DATA = ROOT / "tests" / "data"
QUESTION = {"id": "q1", "text": "Which drug?", "kind": "choice", "gold": "B", "options": {"A": "lomab", "B": "kavan"}}
LARGE = "model.path=large-model hardware.learner_gpu_gib=8 learner.gpus_per_worker=1 run.folder=fresh"
LOOPS = "--triples loops.csv --corpus good-corpus.jsonl"
CIRCLE = ((1, "joint"), (2, "retrieval"))
ANY = -1  # lines: progress is told as well
PORT = "{port}"  # of one that somebody listens at
NOWHERE = "http://127.0.0.1:9"  # the port for discarding, where nothing answers


class Bad(NamedTuple):
    """What is wrong with an input, the words of the command, and how it is answered."""

    given: str
    words: str
    lines: int = 1
    code: int = 2


def _train(given: str, *overrides: str, lines: int = 1) -> Bad:
    return Bad(given, " ".join(["train", DEMO, "--dry-run", *overrides]), lines)


BAD: dict[str, list[Bad]] = {
    "Configurations": [
        Bad("a file that is not there", "train nowhere.yaml"),
        Bad("a folder", "train configs"),
        Bad("no YAML", "train broken.yaml"),
        Bad("no UTF-8", "train latin.yaml"),
        Bad("a list", "train list.yaml"),
        Bad("a date that is none", "train date.yaml"),
        Bad("aliases of aliases", "train bomb.yaml"),
        Bad("a base that leads back", "train loop.yaml"),
        Bad("a base that is not there", "train orphan.yaml"),
        _train("an unknown setting", "rollout.num_engine=3"),
        _train("an unknown section", "rolout.num_engines=3"),
        _train("a wrong type", "rollout.num_engines=three"),
        _train("a number out of range", "rollout.max_staleness=-1"),
        _train("a number that is none", "run.stall_timeout_s=.nan"),
        _train("two mistakes", "rollout.num_engine=3", "learner.workers=0", lines=2),
        _train("no override", "rollout.num_engines"),
        _train("an override without a name", "=3"),
        _train("an override below a value", "run.seed.x=3"),
        _train("an override of a phase that is not there", "curriculum.phases.jiont.max_steps=3"),
        _train("a position that is none", "curriculum.phases.²=3"),
        _train("a value that is no YAML", "run.name=[1"),
        _train("a date as a value", "run.name=2026-13-45"),
        _train("a seed below 0", "run.seed=-1"),
        _train("group size 1 with an algorithm that compares", "rollout.group_size=1"),
        _train("two ways to lose slow groups", "rollout.oversample=1.5", "rollout.max_staleness=1"),
        _train("an empty mixture", '"curriculum.phases.0.mixture={}"'),
        _train("an unknown task source", '"curriculum.phases.0.mixture={world/jiont: 1}"'),
        _train("no phases", "curriculum.phases=[]"),
        _train("two phases of one name", "curriculum.phases.1.name=reasoning"),
        _train("an entry rule that leads back to itself", '"curriculum.phases.2.entry={score: 0.5, otherwise: joint}"'),
        _train("circular rules", *(f'"curriculum.phases.{i}.entry={{score: 0.5, otherwise: {to}}}"' for i, to in CIRCLE)),
        _train("a way back to a later phase", '"curriculum.phases.1.regress={phases: [joint]}"'),
        _train("a phase that never ends", '"curriculum.phases.0.exit={plateau: false, combine: any}"'),
        _train("a metric without a name", "\"curriculum.collapse.signals.reward={metric: '', min_change: 0.1}\""),
        _train("fewest steps above most", "curriculum.phases.0.min_steps=1000"),
        _train("an unknown plan", "curriculum=med_r4"),
        _train("a reward that is not there", "curriculum.phases.0.reward=med_r3/raesoning"),
        _train("a component that is not there", '"rewards.mine={terms: [{name: corect}]}"'),
        _train("a component with a wrong argument", '"rewards.mine={terms: [{name: search_count, arguments: {fee: 1}}]}"'),
        _train(
            "an own reward that takes longer than its group may", '"rewards.mine={terms: [{name: a.b:c, deadline_s: 600}]}"'
        ),
        _train("a tool that is not configured", "budget.tools=[read]"),
        _train("an address of a tool that is none", "\"rollout.tools.s={kind: json_api, url: 'ftp://x/{query}'}\""),
        _train("engine and learner that compute differently", "learner.dtype=bfloat16"),
        _train("no room for a prompt", "budget.max_response_tokens=100000"),
        _train("colocated engines that shall scale", "rollout.colocated=true", '"rollout.autoscale={}"'),
        _train("HTTP for strangers without a token", "retrieval.http_port=8000", "retrieval.http_host=0.0.0.0"),
        _train("a search that finds nothing", "retrieval.lexical_weight=0", "retrieval.dense_weight=0"),
        _train("a model folder that is not there", "model.path=nowhere"),
        _train("a model of a size that cannot be told", "model.path=damaged-model"),
        Bad("a model that no GPU of this size holds", f"train {DEMO} {LARGE}", 2),
        Bad("an index that is not there", f"train {DEMO} retrieval.index=nowhere run.folder=fresh"),
        Bad("a run folder with somebody else's files", f"train {DEMO} run.folder=theirs"),
        Bad("a run folder that cannot be written", f"train {DEMO} run.folder=broken.yaml"),
        Bad("a port that is taken", f"train {DEMO} run.folder=fresh retrieval.http_port={PORT}"),
        Bad("a word of --resume that is no run", f"train {DEMO} --resume nowhere"),
        Bad("a manifest that is damaged", f"train {DEMO} run.folder=runs/cut"),
        Bad("a manifest of other settings", f"train {DEMO} run.folder=runs/other run.seed=5"),
        Bad("a fork of a run that is not there", f"train {DEMO} run.folder=fresh --fork nowhere"),
        Bad("an option that is not there", f"train {DEMO} --dryrun", 4),
    ],
    "Runs": [
        Bad("no such run", "status nowhere"),
        Bad("a name longer than a file's can be", "status " + "a" * 300),
        Bad("a folder that is no run", "status empty"),
        Bad("a status that is no JSON", "status runs/damaged"),
        Bad("a status of other types", "status runs/odd"),
        Bad("a run that has ended", "stop demo"),
        Bad("a command that is not there", "phase advace demo"),
        Bad("a command to a run that has ended", "phase advance demo"),
        Bad("a number of engines that is none", "scale --engines many demo"),
        Bad("no engines", "scale --engines 0 demo"),
        Bad("a page of a folder that is no run", "report empty"),
        Bad("a page of damaged events", "report runs/damaged"),
        Bad("a run that broke a promise", "audit demo", 0, 1),
        Bad("an audit of damaged events", "audit runs/damaged", 0, 1),
        Bad("nothing to export", "export demo --out model"),
        Bad("a dtype that is not there", "export demo --out model --dtype float8", 4),
        Bad("a step below 1", "replay demo --from 0", 4),
        Bad("an episode that is not there", "trajectories show demo nothing"),
        Bad("an outcome that is not there", "trajectories export demo --out rows.parquet --outcome lost"),
        Bad("a kind of file that is not there", "trajectories export demo --out rows.txt"),
        Bad("rows that are damaged", "trajectories stats runs/damaged-rows"),
        Bad("no rows", "trajectories stats empty"),
        Bad("a page of no run", "dashboard nowhere"),
        Bad("a port beyond all ports", "dashboard demo --port 99999", 4),
    ],
    "Clusters": [
        Bad("an address that is none", "status --address 127.0.0.1:8265"),
        Bad("an address where nothing answers", f"status --address {NOWHERE}"),
        Bad("a run folder that would be lost", f"submit {DEMO} --address {NOWHERE}"),
        Bad("a secret among the overrides", f"submit {DEMO} --address {NOWHERE} run.folder=/shared/x tracking.api_key=abc", 1),
        Bad("no address", f"submit {DEMO}", 4),
        Bad("a deadline of no time", "drain --deadline 0", 4),
    ],
    "Questions and literature": [
        Bad("no such file", "data check nowhere.jsonl"),
        Bad("a truncated gzip", "data check cut.jsonl.gz"),
        Bad("columns of no known format", "data check columns.csv"),
        Bad("a format that is not there", "data check good.jsonl --format medqua"),
        Bad("an empty file", "data check empty.jsonl"),
        Bad("no UTF-8", "data check latin.jsonl", 2, 1),
        Bad("two gold letters", "data check two-gold.jsonl", 2, 1),
        Bad("a limit below its lower bound", "data check limits.jsonl", 2, 1),
        Bad("one id twice", "data check twice.jsonl", 2, 1),
        Bad("no table", "data check not.parquet"),
        Bad("brackets without end", "data check deep.json", 2, 1),
        Bad("a file that is there", "data import good.jsonl --out good.jsonl"),
        Bad("an import of what is no question", "data import limits.jsonl --out new.jsonl", 2, 1),
        Bad("shares of lengths that are none", "data import good.jsonl --out new.jsonl --length exact"),
        Bad("a range of lengths turned round", "data import good.jsonl --out new.jsonl --length exact=1 --tokens 400-100"),
        Bad("no literature", "data corpus nowhere"),
        Bad("literature that is no XML", "data corpus not.xml", 2, 1),
        Bad("an overlap beyond the piece", "data corpus good-corpus.jsonl --chunk 100 --overlap 100"),
        Bad("triples without columns", "data synthesize --out made --triples columns.csv"),
        Bad("a self-loop and a blank among the triples", f"data synthesize --out made --questions 1 {LOOPS}", ANY, 1),
        Bad("an output whose state is damaged", f"data synthesize --out begun --questions 1 {LOOPS}"),
        Bad(
            "an output whose state is no JSON",
            "data extract good-corpus.jsonl --out begun.csv --endpoint http://127.0.0.1:9/v1 --model m",
        ),
        Bad("triples that are not there", "data synthesize --out made --triples nowhere.csv"),
        Bad("a sampler that is not there", "data synthesize --out made --sampler mixt"),
        Bad("fewest hops above most", "data synthesize --out made --min-hops 5 --max-hops 3"),
        Bad("a gate without its server", "data synthesize --out made --gate endpoint"),
        Bad("a student without a tokenizer", "data coldstart good.jsonl --student empty --out made"),
        Bad("an endpoint that is none", "data extract good-corpus.jsonl --out t.csv --endpoint localhost --model m"),
        Bad("a corpus that is empty", "data extract empty.jsonl --out t.csv --endpoint http://127.0.0.1:9/v1 --model m"),
    ],
    "Retrieval": [
        Bad("no corpus", "retrieval build nowhere --out new"),
        Bad("an empty corpus", "retrieval build empty.jsonl --out new"),
        Bad("a document without text", "retrieval build textless.jsonl --out new"),
        Bad("one id twice", "retrieval build twice-corpus.jsonl --out new", ANY),
        Bad("another index in its place", "retrieval build good-corpus.jsonl --out index", 1),
        Bad("an encoder that is not there", "retrieval build good-corpus.jsonl --out new --encoder nowhere", 1),
        Bad("a factory that FAISS does not know", "retrieval build good-corpus.jsonl --out new --factory Flut"),
        Bad("nothing to do", "retrieval update index --out new"),
        Bad("ids that cannot be read", "retrieval update index --out new --retire nowhere"),
        Bad("an index that is none", "retrieval eval empty --queries labels.jsonl"),
        Bad("a manifest that was changed", "retrieval eval changed --queries labels.jsonl"),
        Bad("an index that was half copied", "retrieval eval half --queries labels.jsonl"),
        Bad("a damaged file of an index", "retrieval eval damaged --queries labels.jsonl"),
        Bad("no labelled queries", "retrieval eval index --queries empty.jsonl"),
        Bad("a labelled query without a grade", "retrieval eval index --queries good.jsonl"),
        Bad("k = 0", "retrieval eval index --queries labels.jsonl --k 0", 4),
        Bad("serving no index", "retrieval serve empty --port 8001"),
        Bad("strangers without a token", "retrieval serve index --host 0.0.0.0"),
        Bad("a token that is too short", "retrieval serve index --token-file short-token"),
        Bad("a port that is taken", f"retrieval serve index --port {PORT}"),
        Bad("more documents than a world has", "retrieval world made --documents 1000000000", 4),
    ],
    "Rewards and evaluation": [
        Bad("an episode that is not there", "rewards explain nowhere.json --recipe med_r3 --phase joint"),
        Bad("an episode that is no JSON", "rewards explain broken.yaml --recipe med_r3 --phase joint"),
        Bad("an episode without its question", "rewards explain good.jsonl --recipe med_r3 --phase joint"),
        Bad("no recipe", "rewards explain good.jsonl"),
        Bad("a recipe that is not there", "rewards explain episode.json --recipe med_r4"),
        Bad("a phase that is not there", "rewards explain episode.json --recipe med_r3 --phase jiont"),
        Bad("a reward that is no path", "rewards check brevity"),
        Bad("a module that is not there", "rewards check nowhere.rewards:brevity", 0, 1),
        Bad("neither run nor model", "eval empty"),
        Bad("a model without a configuration", "eval large-model"),
        Bad("an unknown data set", f"eval large-model --config {DEMO} --dataset world/jiont"),
        Bad("a number that is none", f"eval large-model --config {DEMO} --top-k 1,x"),
        Bad("samples that would all be the same", f"eval large-model --config {DEMO} --samples 4"),
        Bad("a seed below 0", f"eval large-model --config {DEMO} --seed -1", ANY),
        Bad("an endpoint without a model", f"eval --endpoint http://127.0.0.1:9/v1 --config {DEMO}"),
        Bad("an address that is none", f"eval --endpoint localhost:8000 --model m --config {DEMO}"),
        Bad("one result alone", "eval compare one"),
        Bad("results that are not there", "eval compare nowhere nowhere"),
        Bad("a result of another kind", "eval compare episode.json episode.json"),
        Bad("arms that are not there", f"ablate {DEMO} --arms nowhere.yaml"),
        Bad("arms that are none", f"ablate {DEMO} --arms list.yaml"),
        Bad("seeds that are no numbers", f"ablate {DEMO} --seeds a,b"),
        Bad("an arm that is not there", f"ablate {DEMO} --only nothing"),
        Bad("a benchmark that is not there", "bench nothing", 4),
    ],
}


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        yield bound.getsockname()[1]


def furnish(folder: Path) -> None:
    """The files that the commands above name."""
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, text in _TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, content in _BYTES.items():
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    (folder / "begun").mkdir()
    (folder / "begun" / "state.json").write_text('{"plan": 1}')
    (folder / "begun.csv.state.json").write_text("{")
    _models(folder)
    _index(folder)
    _runs(folder)


_GOOD = json.dumps(QUESTION) + "\n"
_BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
_BOMB += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8))
_ROW = {
    "run_id": "r", "group_id": "g", "episode_id": "e", "question_id": "q", "attempt": 0, "phase": "p", "source": "s", "kind": "text",
    "token_ids": [], "loss_mask": [], "logprobs": [], "segments": [], "versions": [], "searches": [], "question": QUESTION,
}  # fmt: skip
_MEDQA = {"question": "Which?", "answer": "b", "options": {"A": "a", "B": "b"}, "meta_info": "step1", "answer_idx": "B"}
_NUMBER = {**QUESTION, "kind": "number", "gold": "5", "options": {}, "lower": 7, "upper": 3}
_TEXTS = {
    "broken.yaml": "run: [1",
    "list.yaml": "- 1\n",
    "date.yaml": "run: {name: 2026-13-45}\n",
    "bomb.yaml": _BOMB,
    "loop.yaml": "base: loop.yaml\n",
    "orphan.yaml": "base: nowhere.yaml\n",
    "good.jsonl": _GOOD,
    "empty.jsonl": "",
    "columns.csv": "a,b\n1,2\n",
    "two-gold.jsonl": json.dumps(_MEDQA)[:-1] + ', "answer_idx": "A"}\n',
    "limits.jsonl": json.dumps(_NUMBER) + "\n",
    "twice.jsonl": _GOOD + _GOOD,
    "deep.json": "[" * 5_000,
    "not.xml": "<PubmedArticleSet><PubmedArticle></PubmedArticleSet>",
    "good-corpus.jsonl": '{"id": "d1", "text": "lowers glucose"}\n{"id": "d2", "text": "thins blood"}\n',
    "twice-corpus.jsonl": '{"id": "d1", "text": "lowers glucose"}\n{"id": "d1", "text": "thins blood"}\n',
    "textless.jsonl": '{"id": "d1", "text": ""}\n',
    "loops.csv": "subject,relation,object\na,causes,a\n,causes,b\na,causes,b\nb,causes,a\n",
    "labels.jsonl": '{"id": "q1", "query": "glucose", "relevant": {"d1": 1}}\n',
    "short-token": "abc\n",
    "episode.json": json.dumps(_ROW),
}
_BYTES = {
    "latin.yaml": "run: {name: é}".encode("latin-1"),
    "latin.jsonl": _GOOD.encode() + _GOOD.replace("q1", "é").encode("latin-1"),
    "cut.jsonl.gz": gzip.compress(_GOOD.encode() * 50)[:40],
    "not.parquet": b"PAR1 but nothing else PAR1",
}


def _models(folder: Path) -> None:
    shape = {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "vocab_size": 152064,
    }
    for name, config in (("damaged-model", {"model_type": "qwen2"}), ("large-model", {"model_type": "qwen2", **shape})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))


def _index(folder: Path) -> None:
    """A whole one, one whose manifest was changed, one that lacks a file, and one with a byte changed."""
    documents = [Document(id="d1", text="lowers glucose"), Document(id="d3", text="something else")]
    HybridIndex.build(documents, folder / "index", RetrievalConfig(dimensions=16))
    for name in ("changed", "half", "damaged"):
        shutil.copytree(folder / "index", folder / name)
    manifest = folder / "changed" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents": 2', '"documents": 3'))
    (folder / "half" / "documents.arrow").unlink()
    damaged = folder / "damaged" / "documents.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"x" + damaged.read_bytes()[-8:])


def _runs(folder: Path) -> None:
    """One that ended, and others with one file wrong each."""
    demo = write_run(folder / "runs" / "demo")
    (demo / "status.json").write_text(
        json.dumps({"state": "finished", "step": 93, "pid": 2**22 + 1, "host": socket.gethostname()})
    )
    config = load(ROOT / DEMO, [f"run.folder={demo}"])
    (demo / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    for name in ("damaged", "odd", "damaged-rows", "cut", "other"):
        (folder / "runs" / name).mkdir()
    for name, texts in _DAMAGED.items():
        for file, text in texts.items():
            (folder / "runs" / name / file).write_text(text)
    shutil.copytree(demo, folder / "runs" / "damaged-rows", dirs_exist_ok=True)
    (folder / "theirs" / "checkpoints").mkdir(parents=True)
    rows = sorted((folder / "runs" / "damaged-rows" / "trajectories").glob("*.parquet"))[0]
    rows.write_bytes(rows.read_bytes()[:-20])


_KNOWN = {"run_id": "r", "step": 2, "generation": 1, "config_hash": "0" * 16, "index_hash": "", "tracker_id": "", "events": 0}
_RECORD = {"folder": "checkpoints/step-2", "step": 2, "phase": "joint", "phase_index": 0, "score": None, "probed_at": None}
_STATE = {"checkpoints": [_RECORD], "ledger": {}, "sampler": {}, "controller": {}, "progress": {}}
_DAMAGED = {
    "damaged": {"events.jsonl": "nonsense\n", "metrics.jsonl": "", "status.json": "{"},
    "odd": {"status.json": json.dumps({"pid": "7", "engines": []})},
    "cut": {"manifest.json": '{"step": 2'},
    "other": {"manifest.json": json.dumps({**_KNOWN, **_STATE})},
}
