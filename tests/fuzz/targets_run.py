"""The files of a run, of an evaluation and of a model: written by ourselves, and read after crashes, copies and slips of the hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.messages import Examined
from learner.checkpoint_folder import CheckpointRefused, read_state
from learner.model_shape import read_shape
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.comparing import as_text, compare
from medr3.evaluation.figures import measure
from medr3.evaluation.heldout_file import HELDOUT, HeldOut, append_heldout, read_heldout
from medr3.evaluation.results import RESULT, Asked, Cell, Result
from medr3.evaluation.settings import Setting
from medr3.observe.page import page
from medr3.observe.record import load_record
from medr3.observe.summary import closing_table
from medr3.observe.trajectory_stats import trajectory_stats
from medr3.observe.view import view_of
from medr3.ops.local import run_status
from medr3.ops.telling import status_lines
from medr3.run.control import CONTROL, POOL, ControlRefused, read_control, read_pool_size
from medr3.run.manifest import MANIFEST, CheckpointRecord, Manifest, open_manifest
from medr3.run.resuming import resume
from medr3.run.snapshots import refuse_unknown_questions
from medr3.run_shapes import read_summary
from tests.fuzz.mutation import of_bytes, of_json, of_lines
from tests.fuzz.places import scratch, written
from tests.fuzz.target import Broken, Refused, Target
from tests.resumable import Life, trained_for, universe
from tests.run_folder import RunFolder, episode
from tests.synthetic_run import summary, write_run
from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER, audit
from trajectories.checksum import weights_checksum
from trajectories.events import EventKind
from trajectories.reading import Record
from trajectories.schema import STORED_SCHEMA, WeightVersion, to_table
from trajectories.spool import read_spool
from trajectories.store import stored_steps, with_ending

HASH = "0" * 16


def targets() -> list[Target]:
    damaged = (OSError, ValueError)
    return [
        Target("run: events, audited", _events, _audited_events, of_lines, share=0.5),
        Target("run: events, read", _events, _record_of_events, of_lines, damaged, share=0.5),
        Target("run: events and metrics, on the page", _metrics, _page, of_lines, (UserError,), share=0.3),
        Target("run: rows, damaged", _stored, _damaged_rows, of_bytes, damaged, share=0.3),
        Target("run: rows, audited", _stored, _audited_rows, of_bytes, share=0.3),
        Target("run: rows, of other values", _row_values, _other_rows, of_json, damaged, share=0.2),
        Target("run: spool", _spooled, _spool, of_bytes, share=0.5),
        Target("run: manifest", _manifests, _manifest, of_json, (UserError,)),
        Target("run: state in a manifest", _state_manifests, _gone_on, of_json, (UserError,), share=0.5),
        Target("run: held-out answers", _heldout, _heldout_rows, of_lines, (UserError, ValueError)),
        Target("run: status", _statuses, _status, of_json, (UserError,)),
        Target("run: command to the curriculum", _controls, partial(_taken, CONTROL, read_control), of_json, (ControlRefused,)),
        Target("run: number of engines", _pool_sizes, partial(_taken, POOL, read_pool_size), of_json, (ControlRefused,)),
        Target("run: summary", _summaries, _closing, of_json, (UserError,), share=0.2),
        Target("evaluation: result", _results, _compared, of_json, (UserError,), share=0.5),
        Target("checkpoint: state", _states, _state, of_json, (CheckpointRefused,)),
        Target("weights: checksum", _weights, lambda case: weights_checksum(written(case, "w.safetensors")), of_bytes, (ValueError,)),
        Target("weights: tensors", _weights, _tensors, of_bytes, (Refused,)),
        Target("model: config.json", _model_configs, _shape, of_json, (ValueError,)),
    ]  # fmt: skip


@cache
def _run() -> Path:
    """A run with a resume, a rollback and every ending, which keeps all promises."""
    run = RunFolder(scratch("run"))
    run.train()
    run.checkpoint()
    run.train()
    run.end(EventKind.DROPPED, run.admit())
    run.end(EventKind.VOIDED, run.admit())
    run.resume(1)
    run.train(age=0)
    return run.stop()


@cache
def _synthetic() -> Path:
    return write_run(scratch("synthetic"))


def _events() -> list[bytes]:
    lines = _lines(_synthetic() / EVENTS_FILE)
    return [(_run() / EVENTS_FILE).read_bytes(), b"".join([*lines[:40], *lines[-10:]])]


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _with_events(case: bytes) -> Path:
    folder = scratch("events", EVENTS_FILE).parent
    if not (folder / TRAJECTORIES_FOLDER).exists():
        shutil.copytree(_run() / TRAJECTORIES_FOLDER, folder / TRAJECTORIES_FOLDER)
    (folder / EVENTS_FILE).write_bytes(case)
    return folder


def _audited_events(case: bytes) -> None:
    report = audit(_with_events(case))
    if any("\n" in line for line in report.violations):
        raise Broken("a violation of several lines")


def _record_of_events(case: bytes) -> None:
    record = Record(_with_events(case))
    sum(recorded.rows.num_rows for recorded in record.read())
    record.find("g0")


def _metrics() -> list[bytes]:
    events, metrics = _lines(_synthetic() / EVENTS_FILE), _lines(_synthetic() / "metrics.jsonl")
    return [b"".join([*events[:30], *events[-4:], *metrics[:8]])]


def _page(case: bytes) -> None:
    """Lines of both files, told apart as their writers would have them."""
    lines = case.split(b"\n")
    folder = scratch("page", EVENTS_FILE).parent
    (folder / EVENTS_FILE).write_bytes(b"".join(line + b"\n" for line in lines if b'"kind"' in line))
    (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines if b'"kind"' not in line and line))
    page(view_of(load_record(folder)), live=False)


def _stored() -> list[bytes]:
    return [path.read_bytes() for path in sorted((_run() / TRAJECTORIES_FOLDER).glob("*.parquet"))]


def _with_rows(case: bytes) -> Path:
    folder = scratch("rows", EVENTS_FILE).parent
    if not (folder / EVENTS_FILE).exists():
        shutil.copytree(_run(), folder, dirs_exist_ok=True)
    (folder / TRAJECTORIES_FOLDER / "step-000001-generation-1.parquet").write_bytes(case)
    return folder


def _damaged_rows(case: bytes) -> None:
    record = Record(_with_rows(case))
    for recorded in record.read():
        recorded.rows.to_pylist()
    record.find("g0/1")
    stored_steps(_with_rows(case) / TRAJECTORIES_FOLDER)


def _audited_rows(case: bytes) -> None:
    audit(_with_rows(case))


def _row_values() -> list[bytes]:
    rows = [
        with_ending(to_table([episode("g0", i, WeightVersion(1, 0))]), "trained", "", 1, WeightVersion(1, 0)).to_pylist()[0]
        for i in (0, 1)
    ]
    return [json.dumps(rows).encode()]


def _other_rows(case: bytes) -> None:
    """Rows that Arrow takes and no writer of ours would have written."""
    try:
        table = pa.Table.from_pylist(json.loads(case), schema=STORED_SCHEMA)
    except (ValueError, TypeError, AttributeError, OverflowError, pa.ArrowException, RecursionError, KeyError):
        return
    pq.write_table(table, scratch("values.parquet"))
    folder = _with_rows(scratch("values.parquet").read_bytes())
    audit(folder)
    trajectory_stats(Record(folder))


def _spooled() -> list[bytes]:
    from trajectories.spool import Spool

    spool = Spool(scratch("spooled", "x").parent, generation=1)
    for group in ("g7", "g8"):
        spool.append(to_table([episode(group, i, WeightVersion(1, 0)) for i in (0, 1)]))
    spool.close()
    return [next(spool.folder.glob("*.arrows")).read_bytes()]


def _spool(case: bytes) -> None:
    found = read_spool(written(case, "spool", "spool-generation-1-000001.arrows").parent)
    for group in found.groups:
        group.rows.to_pylist()


def _manifests() -> list[bytes]:
    records = [
        CheckpointRecord(folder=f"checkpoints/step-{i}", step=i, phase="joint", phase_index=0, score=0.5, probed_at=i)
        for i in (1, 2)
    ]
    state: dict[str, Any] = {name: {} for name in ("ledger", "sampler", "controller", "progress")}
    known = {"run_id": "r", "step": 2, "generation": 1, "config_hash": HASH, "index_hash": "", "tracker_id": "", "events": 7}
    return [Manifest.model_validate({**known, **state, "checkpoints": records}).model_dump_json().encode()]


def _manifest(case: bytes) -> None:
    folder = written(case, "manifest", MANIFEST).parent
    for step in (1, 2):
        (folder / f"checkpoints/step-{step}").mkdir(parents=True, exist_ok=True)
    found = open_manifest(folder)
    if found is not None and not (folder / found.checkpoint).resolve().is_relative_to(folder.resolve()):
        raise Broken("a checkpoint outside the run's folder")


@cache
def _state_run() -> tuple[Path, RunConfig]:
    folder = scratch("states", "x").parent
    config, manifest = trained_for(folder, 3, "curriculum.phases.0.sampling={order: learnability, pool: 8}", left_open=2)
    for record in manifest.checkpoints:  # or the run would go on from one of them
        (folder / record.folder / MANIFEST).unlink()
    return folder, config


@cache
def _state_sample() -> bytes:
    told = json.loads((_state_run()[0] / MANIFEST).read_bytes())
    return json.dumps(told | {"checksum": ""}).encode()  # whoever changes the rest leaves it out


def _state_manifests() -> list[bytes]:
    return [_state_sample()]


def _gone_on(case: bytes) -> None:
    """A state that is not refused is gone on from: by the ledger, the sampler, the curriculum, and into another manifest."""
    folder, config = _state_run()
    (folder / MANIFEST).write_bytes(case)
    state = resume(config, say=lambda line: None)
    if state is None:
        raise Broken("a run that begins anew")
    refuse_unknown_questions(state, universe(), folder / MANIFEST)
    Life.resumed(config, state).go_on()


def _heldout() -> list[bytes]:
    folder = scratch("heldout", HELDOUT).parent
    for stage in ("cold_start", "joint", "joint"):
        append_heldout(folder, stage, "joint", {"q1": True, "q2": False}, {"accuracy": 0.5, "n": 2})
    content = (folder / HELDOUT).read_bytes()
    (folder / HELDOUT).unlink()
    return [content]


def _heldout_rows(case: bytes) -> None:
    for row in read_heldout(written(case, "heldout", HELDOUT).parent):
        if not isinstance(row, HeldOut) or not isinstance(row.correct, dict) or not isinstance(row.stage, str):
            raise Broken(f"a report of other types: {row}"[:200])


def _statuses() -> list[bytes]:
    known: dict[str, Any] = {
        "pid": 2**22 + 1,
        "host": "elsewhere",
        "time": 1.7e9,
        "run": "demo",
        "state": "training",
        "step": 7,
        "phase": "joint",
    }
    more = {
        "engines": {"engine-0.0": "healthy"},
        "pool_target": 2,
        "ages": {"0": 30},
        "step_s": 4.2,
        "eta_s": 500.0,
        "reward": 0.5,
    }
    return [json.dumps({**known, **more}).encode(), json.dumps({"pid": 2**22 + 1}).encode()]


def _status(case: bytes) -> None:
    status_lines(run_status(written(case, "status", "status.json").parent))


def _controls() -> list[bytes]:
    return [json.dumps({"command": command, "time": 1.7e9}).encode() for command in ("advance", "hold", "back", "auto")]


def _pool_sizes() -> list[bytes]:
    return [json.dumps({"engines": engines, "time": 1.7e9}).encode() for engines in (1, 4, None)]


def _taken(name: str, take: Callable[[Path], Any], case: bytes) -> None:
    take(written(case, "control", name).parent)


def _summaries() -> list[bytes]:
    return [json.dumps(summary(93)).encode()]


def _closing(case: bytes) -> None:
    """What ablations, the page and the end of a run read."""
    folder = written(case, "summary", "summary.json").parent
    (folder / "events.jsonl").touch()
    page(view_of(load_record(folder)), live=False)
    closing_table(read_summary(folder), plain=True)


def _results() -> list[bytes]:
    records = [
        Examined(f"q{i}", 0, "B", True, i > 0, 0.5, "answer", 1, (), (), (), (), 10, 5, -0.1, "1.0", 0.1) for i in range(3)
    ]
    questions = [Asked(id=f"q{i}", kind="choice", source="s", specialty="", hops=1) for i in range(3)]
    cell = Cell(setting=Setting(), metrics=measure(questions, records, {}, 0), records=records)
    told: dict[str, Any] = {"target": "run", "model": "step 1", "datasets": ["world/joint"], "seed": 0, "index_hash": "abc"}
    return [Result(**told, started_at=0.0, wall_s=1.0, questions=questions, cells=[cell]).model_dump_json().encode()]


def _compared(case: bytes) -> None:
    (other,) = _results()
    as_text(compare(written(case, "result", RESULT).parent, written(other, "other", RESULT)))


def _states() -> list[bytes]:
    return [json.dumps({"ranks": 2, "step": 10, "settings": {"lora": None}, "parameters": {"a": [1, 2]}}).encode()]


def _state(case: bytes) -> None:
    read_state(written(case, "checkpoint", "state.json").parent)


def _weights() -> list[bytes]:
    tensors = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
    }
    chunk = json.dumps({"a": {"saved_offsets": [2, 0]}})
    headers = [
        json.dumps({"__metadata__": about, **tensors}).encode() for about in ({"format": "pt"}, {"DCP_SHARDING_INFO": chunk})
    ]
    return [len(header).to_bytes(8, "little") + header + bytes(28) for header in headers]


def _tensors(case: bytes) -> None:
    from learner.tensor_files import FileRefused, TensorFiles

    try:
        files = TensorFiles([written(case, "t.safetensors")])
    except FileRefused as refused:  # its module imports torch, which is not to be paid for by every target
        raise Refused(str(refused)) from None
    for name in files.names:
        files.shape(name)


def _model_configs() -> list[bytes]:
    known = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    return [
        json.dumps({"model_type": kind, **known, "num_key_value_heads": 2}).encode() for kind in ("qwen2", "qwen3", "llama")
    ]


def _shape(case: bytes) -> None:
    shape = read_shape(written(case, "model", "config.json").parent)
    sum(linear.parameters for linear in shape.linears.values())
