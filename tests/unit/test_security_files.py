"""Nothing that is read from outside runs, leaves its folder, or grows without bound; what tries is refused in one line."""

from __future__ import annotations

import ast
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from learner.tensor_files import CHUNKS, FileRefused, TensorFiles
from medr3.config import load
from medr3.errors import UserError
from medr3.run.manifest import MANIFEST, open_manifest
from retrieval_service import documents as store
from retrieval_service.config import RetrievalConfig
from retrieval_service.documents import Documents
from retrieval_service.index import HybridIndex
from retrieval_service.manifest import FILE, IndexManifest, IndexRefused, file_checksum
from security.yaml_files import read_yaml
from tasks.corpora.pubmed import read_pubmed
from tasks.graph.triples import BadRow, read_triples
from tasks.questions import Document
from tasks.reading import Malformed
from tasks.rows import FileRefused as RowsRefused
from tasks.rows.opening import Damaged, open_bytes
from tasks.rows.tables import parquet_rows

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "curriculum", "learner", "medr3", "retrieval_service", "rewards", "security", "tasks", "trajectories")
CONFIG = RetrievalConfig(dimensions=16)

# --- nothing is unpickled

# Calls that run what they read, by their dotted names; each with the keyword that makes it harmless, if one does.
RUNS_CODE = {
    "pickle.load": None, "pickle.loads": None, "pickle.Unpickler": None, "cloudpickle.load": None, "cloudpickle.loads": None,
    "dill.load": None, "dill.loads": None, "joblib.load": None, "marshal.load": None, "marshal.loads": None, "shelve.open": None,
    "torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False),
    "yaml.load": None, "yaml.full_load": None, "yaml.unsafe_load": None, "yaml.safe_load": None,
    "eval": None, "exec": None, "os.system": None, "os.popen": None,
}  # fmt: skip
# YAML is read with its aliases bounded; the first of these is the reader, the second reads a safe format with a safe loader, the
# third runs on a cluster's head with nothing of this project, over Ray's own file.
YAML_READERS = {("security/advisories.py", "yaml.load"), ("medr3/ops/cluster_probe.py", "yaml.safe_load")}
UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
WORTH_PARSING = re.compile(
    r"pickle|dill|joblib|marshal|shelve|torch\.load|n(?:um)?py?\.load|yaml\.|\beval\(|\bexec\(|os\.(?:system|popen)|from_pretrained"
    r"|AsyncEngineArgs|shell=|trust_remote_code"
)
FROM_PRETRAINED = {"AutoConfig", "AutoTokenizer"}  # which look for code in a folder unless they are told not to


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    return list(_calls())


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)) if WORTH_PARSING.search(source) else ():
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                    assert not {name.split(".")[0] for name in names} & UNPICKLING, f"{path}:{node.lineno}: {names}"
                if isinstance(node, ast.Call):
                    yield str(path.relative_to(ROOT)), ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, Any]:
    return {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}


def test_no_room_calls_what_runs_the_bytes_that_it_reads() -> None:
    found = []
    for path, name, call in calls():
        if name in RUNS_CODE and (path, name) not in YAML_READERS:
            mend = RUNS_CODE[name]
            if mend is None or keywords(call).get(mend[0]) is not mend[1]:
                found.append(f"{path}:{call.lineno}: {ast.unparse(call)[:80]}")
        if name.endswith("from_pretrained") and name.split(".")[-2] in FROM_PRETRAINED:
            trusted = keywords(call).get("trust_remote_code")
            if trusted is not False and (path, name) != ("tasks/tokenizer.py", "AutoTokenizer.from_pretrained"):
                found.append(f"{path}:{call.lineno}: trusts a folder's code: {ast.unparse(call)[:80]}")
        if keywords(call).get("shell") is True or keywords(call).get("trust_remote_code") is True:
            found.append(f"{path}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert found == []


def test_engines_read_no_pickled_weights() -> None:
    formats = [keywords(call).get("load_format") for _, name, call in calls() if name == "AsyncEngineArgs"]
    assert formats == ["safetensors"], "vLLM's own choice falls back to pickles"


def test_a_numpy_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path, "ran").touch, ())

    index = built(tmp_path)
    np.save(index / "lexical-starts.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    sealed_again(index)
    with pytest.raises(IndexRefused) as refused:
        HybridIndex.load(index, CONFIG)
    assert "\n" not in str(refused.value) and not (tmp_path / "ran").exists()


# --- tensors


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


WHOLE = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


@pytest.mark.parametrize(
    "content",
    {
        "header beyond the file": safetensors(WHOLE, length=2**40),
        "header of all bytes that there are": safetensors(WHOLE, length=2**64 - 1),
        "data beyond the file": safetensors({"a": {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]}}),
        "shape of more than the data": safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}}),
        "shape that overflows": safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}),
        "offsets backwards": safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
        "overlapping": safetensors({**WHOLE, "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
        "deep": safetensors(b"[" * 100_000),
        "chunks that are no object": safetensors({**WHOLE, "__metadata__": {CHUNKS: "[1]"}}),
        "chunks of another shape": safetensors({**WHOLE, "__metadata__": {CHUNKS: '{"a": {"saved_offsets": "x"}}'}}),
        "empty": b"",
        "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    }.items(),
    ids=lambda item: item[0],
)
def test_tensor_files_that_lie(content: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[1])
    with pytest.raises(FileRefused, match=r"model\.safetensors"):
        TensorFiles([path])


# --- index folders


def built(tmp_path: Path) -> Path:
    documents = [Document(id=f"d{i}", text=f"metformin lowers glucose {i}") for i in range(20)]
    HybridIndex.build(documents, tmp_path / "index", CONFIG)
    return tmp_path / "index"


def sealed_again(index: Path, **changed: Any) -> None:
    """A manifest whose checksums are those of the files as they are now: what somebody would bring who means harm."""
    manifest = IndexManifest.model_validate_json((index / FILE).read_bytes())
    files = {name: file_checksum(index / name) for name in manifest.files if (index / name).is_file()}
    sealed = manifest.model_copy(update={"files": files, **changed}).sealed()
    (index / FILE).write_bytes(sealed.as_bytes())


def wild_offsets(path: Path) -> None:
    """An Arrow file whose text column points a terabyte behind its end."""
    rows = pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_batches()[0]
    arrays = rows.columns
    place = rows.schema.get_field_index("text")
    offsets = np.frombuffer(arrays[place].buffers()[1], dtype=np.int64).copy()
    offsets[1:-1] = 2**40  # the ends are right: Arrow looks at them without being asked
    buffers = [arrays[place].buffers()[0], pa.py_buffer(offsets.tobytes()), arrays[place].buffers()[2]]
    arrays[place] = pa.Array.from_buffers(pa.large_string(), len(rows), buffers)
    batch = pa.RecordBatch.from_arrays(arrays, schema=rows.schema)
    del rows
    store.write([batch], path)


def link_out(index: Path) -> None:
    (index / "vocabulary.json").rename(index.parent / "vocabulary.json")
    (index / "vocabulary.json").symlink_to(index.parent / "vocabulary.json")


def above(index: Path) -> None:
    shutil.copy(index / "vocabulary.json", index.parent / "secret.txt")
    manifest = IndexManifest.model_validate_json((index / FILE).read_bytes())
    sealed_again(index, files={**manifest.files, "../secret.txt": file_checksum(index.parent / "secret.txt")})


def planted(index: Path) -> None:
    np.save(index / "vectors.npy", np.zeros((20, 16), dtype=np.float32))


def fewer(index: Path) -> None:
    batch = next(iter([Documents.open(index / store.FILE).batch(0)]))
    store.write([pa.RecordBatch.from_pylist(batch.to_pylist()[:3], schema=store.SCHEMA)], index / store.FILE)


HARM: dict[str, Callable[[Path], None]] = {
    "documents beyond the file": lambda index: wild_offsets(index / store.FILE),
    "a link out of it": link_out,
    "a file above it": above,
    "a file that no manifest names": planted,
    "fewer documents than it says": fewer,
    "words that are no list": lambda index: (index / "vocabulary.json").write_text("7") and None,
    "words of no JSON": lambda index: (index / "vocabulary.json").write_text("[") and None,
    "postings of no numbers": lambda index: (index / "lexical-rows.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff") and None,
    "vectors of no index": lambda index: (index / "dense.faiss").write_bytes(b"IxFI" + b"\xff" * 64) and None,
}


@pytest.mark.parametrize("harm", HARM)
def test_index_folders_that_mean_harm(harm: str, tmp_path: Path) -> None:
    index = built(tmp_path)
    HARM[harm](index)
    if harm != "a file above it":
        sealed_again(index)
    with pytest.raises(IndexRefused, match=r"build the index again|remove it") as refused:
        HybridIndex.load(index, CONFIG)
    assert "\n" not in str(refused.value)


# --- manifests of runs


@pytest.mark.parametrize("folder", ["../../etc", "/etc", "checkpoints/../../x", "checkpoints//x"])
def test_a_run_manifest_names_nothing_outside_its_run(folder: str, tmp_path: Path) -> None:
    record = {"folder": folder, "step": 1, "phase": "p", "phase_index": 0, "score": None, "probed_at": None}
    manifest = {
        "run_id": "r", "step": 1, "generation": 1, "checkpoints": [record], "config_hash": "", "index_hash": "", "tracker_id": "",
        "events": 0, "ledger": {}, "sampler": {}, "controller": {}, "progress": {}, "schema_version": 3,
    }  # fmt: skip
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not lie in the run's folder") as refused:
        open_manifest(tmp_path)
    assert "\n" not in str(refused.value)


# --- what grows


def test_an_archive_that_unpacks_without_end_is_left(tmp_path: Path) -> None:
    bomb = tmp_path / "triples.csv.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(b"subject,relation,object\n")
        for _ in range(70):
            file.write(b"x" * 0xFFFFF + b"\n")
    with open_bytes(bomb) as opened, pytest.raises(Damaged, match="refused as a bomb"):
        deque(iter(lambda: opened.read(1 << 20), b""), maxlen=0)
    *_, last = read_triples(bomb)
    assert isinstance(last, BadRow) and "refused as a bomb" in last.reason


def test_a_table_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = pa.table({"question": ["x" * (1 << 20)] * 70})
    pq.write_table(rows, path, compression="zstd", use_dictionary=False)
    with pytest.raises(RowsRefused, match="refused as a bomb"):
        next(parquet_rows(path))
    pq.write_table(rows, path, compression="none", use_dictionary=False)
    assert len(next(parquet_rows(path)).fields["question"]) == 1 << 20, "a large file of the same rows is read"


XML = (
    "<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><Abstract><AbstractText>{}</AbstractText></Abstract>"
    "</Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"
)
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))


@pytest.mark.parametrize(
    ("doctype", "text"),
    [
        (f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>', "&l8;"),
        ('<!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/passwd">]>', "&file;"),
        ('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">', "&far;"),
        ('<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>', "&p;"),
    ],
    ids=["billion laughs", "a file", "a server", "a parameter"],
)
def test_entities_of_xml_stand_for_nothing(doctype: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "pubmed.xml"
    path.write_text(f'<?xml version="1.0"?>{doctype}{XML.format(text)}')
    found = list(read_pubmed(path))
    assert found and all(isinstance(each, Malformed) for each in found)
    assert not any("root:" in each.reason or "haha" in each.reason for each in found if isinstance(each, Malformed))


def test_yaml_that_stands_for_more_than_it_says_is_refused_at_once(tmp_path: Path) -> None:
    bomb = 'a0: &a0 ["ha","ha","ha","ha","ha","ha","ha","ha","ha"]\n'
    bomb += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb)
    with pytest.raises(UserError, match="not valid YAML: stands for more than") as refused:
        load(path, [])
    assert "\n" not in str(refused.value)
    for text in ("a: &a [*a]", "a: 2020-13-45", "a: " + "1" * 5000, "[" * 5_000, "!!python/object/apply:os.system [true]"):
        with pytest.raises(yaml.YAMLError):
            read_yaml(text)
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + bytes(64), b"BZh9" + bytes(64), b"\xfd7zXZ\0" + bytes(64), b"(\xb5/\xfd" + bytes(64)]
)
def test_archives_of_other_kinds_are_not_opened(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(RowsRefused, match="unpack it first"):
        open_bytes(path)


def test_a_recorded_row_with_wild_offsets_ends_nothing(tmp_path: Path) -> None:
    """Read by another process, which a wild read would end by a signal."""
    table = pa.table({"id": ["a", "b", "c"], "question": ["x", "y", "z"]})
    column = table["question"].chunk(0)
    offsets = np.array([0, 2**31 - 2, 2**31 - 1, 3], dtype=np.int32)
    array = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets.tobytes()), column.buffers()[2]])
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([table["id"].chunk(0), array], schema=table.schema))
    code = "import sys; from pathlib import Path; from tasks.rows.tables import arrow_rows; print(list(arrow_rows(Path(sys.argv[1]))))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and "FileRefused" in done.stderr.splitlines()[-1], done.stderr[-300:]
