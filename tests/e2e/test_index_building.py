"""`medr3 retrieval build` as a person runs it: killed, on a full disk, started again, made into another version."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.manifest import IndexManifest
from retrieval_service.types import SearchQuery
from tasks.questions import Document

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DOCUMENTS = 17_000  # three batches
PATIENCE_S = 120.0
SMALL = ("--dimensions", "64", "--workers", "1")
# Bytes that one file may have, and where the build then ends: below the documents' megabyte, and below the encoder's table of 4 MiB.
FULL_AT = {1 << 19: "reading", 4 << 20: "weighing"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "medr3.cli", "retrieval", *arguments]


def medr3(folder: Path, *arguments: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def limited() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=folder, check=False, preexec_fn=limited,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built")
    made = medr3(path, "world", "world", "--documents", str(DOCUMENTS), "--queries", "50")
    assert made.returncode == 0, made.stderr
    built = medr3(path, "build", "world/corpus.jsonl", "--out", "whole", *SMALL)
    assert built.returncode == 0, built.stderr
    assert f"{DOCUMENTS:,} documents, 64 dimensions, Flat (exact)" in built.stdout
    return path


def hash_of(folder: Path) -> str:
    return IndexManifest.read(folder).index_hash


def test_a_build_that_was_killed_goes_on_and_ends_with_the_same_index(folder: Path) -> None:
    unfinished = folder / ".killed.building"
    build = subprocess.Popen(
        command("build", "world/corpus.jsonl", "--out", "killed", *SMALL), cwd=folder,
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first, deadline = unfinished / "words" / "00000.npz", time.monotonic() + PATIENCE_S
    while not first.exists():
        assert build.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    build.kill()
    assert build.wait() == -signal.SIGKILL
    assert not (folder / "killed").exists()
    again = medr3(folder, "build", "world/corpus.jsonl", "--out", "killed", *SMALL)
    assert again.returncode == 0, again.stderr
    assert "reading" not in again.stderr and re.search("^encoding: [12] of 3 are there$", again.stderr, re.MULTILINE)
    assert hash_of(folder / "killed") == hash_of(folder / "whole")
    assert not unfinished.exists()


def test_a_full_disk_is_one_line_and_the_build_goes_on(folder: Path) -> None:
    lines = (folder / "world" / "corpus.jsonl").read_text().splitlines(keepends=True)[:4_000]
    (folder / "few.jsonl").write_text("".join(lines))
    build = ("build", "few.jsonl", "--out", "full", *SMALL)
    for limit, stage in FULL_AT.items():
        full = medr3(folder, *build, limit=limit)
        assert full.returncode == 2 and full.stderr.count("medr3:") == 1 and "Traceback" not in full.stderr, full.stderr
        *stages, problem = full.stderr.splitlines()
        assert stages[-1].startswith(stage) and problem.endswith("the same command goes on from there")
        assert not (folder / "full").exists()
    later = medr3(folder, *build)
    assert later.returncode == 0, later.stderr
    documents = [Document.model_validate_json(line) for line in lines]
    straight = HybridIndex.build(documents, folder / "straight", RetrievalConfig(dimensions=64))
    assert hash_of(folder / "full") == straight.index_hash


def test_an_index_is_never_overwritten_and_a_damaged_one_is_named(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()}
    twice = medr3(folder, "build", "world/corpus.jsonl", "--out", "whole", *SMALL)
    assert twice.returncode == 2
    assert twice.stderr == "medr3: whole is there already, and an index is immutable: choose another folder\n"
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()} == before

    (folder / "bad.jsonl").write_text('{"id": "a", "text": "fine"}\n{"id": "b"}\n')
    bad = medr3(folder, "build", "bad.jsonl", "--out", "bad", *SMALL)
    assert bad.returncode == 2 and "line 2" in bad.stderr and "no text" in bad.stderr and "Traceback" not in bad.stderr


def test_documents_are_added_and_retired_as_a_new_version(folder: Path) -> None:
    old = HybridIndex.load(folder / "whole", RetrievalConfig(dimensions=64))
    gone = old.search([SearchQuery(query="mutations", mode="lexical", k=1)])[0].hits[0].id
    (folder / "gone.txt").write_text(f"{gone}\n")
    (folder / "more.jsonl").write_text(json.dumps({"id": "new/1", "text": "Zuzuvamab cures everything.", "year": 2026}) + "\n")
    done = medr3(folder, "update", "whole", "--out", "next", "--add", "more.jsonl", "--retire", "gone.txt", "--workers", "1")
    assert done.returncode == 0, done.stderr
    new = HybridIndex.load(folder / "next", RetrievalConfig(dimensions=64))
    assert (new.manifest.documents, new.manifest.parent) == (DOCUMENTS, hash_of(folder / "whole"))
    assert new.search([SearchQuery(query="zuzuvamab", k=1)])[0].hits[0].id == "new/1"
    assert new.search([SearchQuery(query=gone, mode="id")])[0].hits == []
    assert new.manifest.origin.sources == ("corpus.jsonl", "more.jsonl")
