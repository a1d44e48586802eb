"""Bad input that no command takes: what a model writes, what an engine answers, what is sent over HTTP, files of a learner."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from actors.config import EpisodeBudget
from actors.protocol import EpisodeProtocol, Finish, Generate
from actors.protocol import Search as Asked
from actors.tokens import EpisodeTokenizer
from learner.checkpoint_folder import CheckpointRefused, check_whole, rank_files, read_state
from medr3.evaluation.written import WrittenText
from medr3.ops.preflight import check_disk, check_memory, check_run_folder, check_shared_memory
from retrieval_service.http_guard import LARGEST_BODY
from tests.fuzz.targets_service import JSON, _served
from trajectories.checksum import weights_checksum
from trajectories.schema import Search, VersionSpan

BUDGET = EpisodeBudget(max_turn_tokens=64, max_response_tokens=256, max_searches=4)
HEADERS = [(name.encode(), value.encode()) for name, value in JSON.items()]


def outcomes(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Section → what is given, and what becomes of it."""
    return {
        "What a machine lacks": list(_machines(folder)),
        "What a model writes": list(_episodes()),
        "What an engine answers": list(_engines()),
        "What is sent to the retrieval service": list(_requests()),
        "Files of a learner": list(_files(folder)),
    }


def _machines(folder: Path) -> Iterator[tuple[str, str]]:
    """What `medr3 train` and `medr3 doctor` look at first; what is free differs from machine to machine."""
    for given, check in {
        "too little memory": check_memory(2**50),
        "too little shared memory": check_shared_memory(2**50, folder),
        "no shared memory": check_shared_memory(1, folder / "nowhere"),
        "too little room on the disk": check_disk(folder, 2**60),
        "a folder that cannot be written": check_run_folder(folder / "broken.yaml"),
    }.items():
        assert not check.ok, given
        said = re.sub(r"[\d.]+( GiB free|% full;)", r"…\1", str(check))
        yield given, f"`{said.replace(f'{folder}/', '').replace(str(folder), 'FOLDER')}`"


def _begun(budget: EpisodeBudget = BUDGET) -> tuple[EpisodeProtocol, WrittenText]:
    text = WrittenText()
    return EpisodeProtocol(EpisodeTokenizer(text).tags, text.encode("which dose ?"), budget), text


def _episodes() -> Iterator[tuple[str, str]]:
    """The episode to its end; a search finds one document."""
    for given, turns in {
        "it never closes a tag": ["<think> so it is and so it goes " + "on " * 40],
        "documents alone": ["<document> dose 42 </document>"],
        "the same over and over": ["<think> " + "wait " * 60],
        "an answer at once": ["<think> </think> <answer> 42 </answer>"],
        "an answer without a thought": ["<answer> 42 </answer>"],
        "an empty answer": ["<think> </think> <answer> </answer>"],
        "a hundred searches": [f"{'<think> ' if not i else ''}<search> dose {i} </search>" for i in range(100)],
        "the same search twice": ["<think> <search> dose </search>", "<search> Dose  </search>"],
        "an empty search": ["<think> <search> </search>"],
        "words behind its answer": ["<think> </think> <answer> 42 </answer> or 43"],
        "bytes that are no text": ["<think> \ufffd\ufffd </think> <answer> \ufffd </answer>"],
        "nothing": [""] * 300,
    }.items():
        episode, text = _begun()
        said = iter(turns)
        while not isinstance(action := episode.next(), Finish):
            if isinstance(action, Generate):
                ids = text.encode(next(said, "so "))[: action.max_tokens]
                episode.on_tokens(ids, [-0.1] * len(ids), [VersionSpan(1, 0, 0, len(ids))])
            elif isinstance(action, Asked):
                found = [Search(episode.turn, query, ["d1"], ["x"], [1.0], [1], "index", 0.0) for query in action.queries]
                episode.on_documents(text.encode("<document> x </document>"), *found)
        answer = f", with the answer {episode.answer!r}" if episode.answer else ", without an answer"
        yield given, f"the episode ends as `{action.reason.value}`{answer}"


def _engines() -> Iterator[tuple[str, str]]:
    def late(episode: EpisodeProtocol, action: Generate) -> None:
        episode.on_tokens([1], [-0.1], [VersionSpan(1, 0, 0, 1)], action)
        episode.on_tokens([1], [-0.1], [VersionSpan(1, 0, 0, 1)], action)

    cases: dict[str, Callable[[EpisodeProtocol, Generate], None]] = {
        "the same request answered twice": late,
        "more tokens than were asked for": lambda episode, _: episode.on_tokens(
            [1] * 65, [0.0] * 65, [VersionSpan(1, 0, 0, 65)]
        ),
        "tokens without log-probabilities": lambda episode, _: episode.on_tokens([1, 2], [0.0], [VersionSpan(1, 0, 0, 2)]),
        "versions that leave tokens out": lambda episode, _: episode.on_tokens([1, 2], [0.0, 0.0], [VersionSpan(1, 0, 0, 1)]),
        "documents where none were asked for": lambda episode, _: episode.on_documents([1]),
    }
    for given, do in cases.items():
        episode, _ = _begun()
        action = episode.next()
        assert isinstance(action, Generate)
        try:
            do(episode, action)
        except (RuntimeError, ValueError) as error:
            said = str(error).partition("Generate(")[0]  # the request itself is of no use on a page
            yield given, f"`{type(error).__name__}: {said.strip()}`"


def _requests() -> Iterator[tuple[str, str]]:
    bodies: dict[str, object] = {
        "an empty query": {"query": ""},
        "a query of white space": {"query": " \n"},
        "a query of a megabyte": {"query": "a" * 2**20},
        "a body beyond the limit": {"query": "a" * LARGEST_BODY},
        "k = 0": {"query": "a", "k": 0},
        "k = -1": {"query": "a", "k": -1},
        "k = 1,000,000": {"query": "a", "k": 10**6},
        "k as text": {"query": "a", "k": "3"},
        "control characters": {"query": "a\x00b"},
        "an unknown filter": {"query": "a", "filters": {"author": "x"}},
        "years turned round": {"query": "a", "filters": {"year_from": 2024, "year_to": 2000}},
        "an unknown mode": {"query": "a", "mode": "sparse"},
        "an unknown collection": {"query": "a", "collection": "nowhere"},
        "a vector in place of words": {"query": [0.1, float("nan")]},
        "half a character": {"query": "\ud800"},
        "no JSON": None,
    }
    for given, body in bodies.items():
        content = b"{" if body is None else json.dumps(body).encode()
        headers = [*HEADERS, (b"content-length", str(len(content)).encode())]
        status, answer = _served().ask("POST", b"/search", headers, content)
        yield given, f"{status}: `{json.loads(answer)['detail']}`"
    status, answer = _served().ask("GET", b"/documents/nowhere", HEADERS, b"")
    yield "an id of no document", f"{status}: `{json.loads(answer)['detail']}`"
    strange = [(name, b"evil.example" if name == b"host" else value) for name, value in HEADERS]
    status, answer = _served().ask("POST", b"/search", strange, b"{}")
    yield "another host's name", f"{status}: `{json.loads(answer)['detail']}`"


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """A checkpoint of one rank, as it is found after a crash or a bad copy."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    shard, state = rank_files(checkpoint, 1)[0], checkpoint / "state.json"

    def written(path: Path, content: bytes) -> None:
        state.write_text('{"ranks": 1}')
        path.write_bytes(content)
        check_whole(checkpoint)

    whole = len(header).to_bytes(8, "little") + header + bytes(16)
    cases: dict[str, Callable[[], object]] = {
        "a folder that is no checkpoint": lambda: read_state(checkpoint),
        "a shard that is not there": lambda: written(checkpoint / "other", b""),
        "a shard that was cut off": lambda: written(shard, whole[:-8]),
        "a shard of another kind": lambda: written(shard, b"PK" + whole),
        "a state that was cut off": lambda: written(state, b'{"ranks": '),
        "weights whose header says more than the file holds": lambda: (
            written(shard, whole) or weights_checksum(_cut(folder, whole))
        ),
    }
    for given, read in cases.items():
        try:
            read()
        except (CheckpointRefused, ValueError) as error:
            yield given, f"`{str(error).replace(f'{folder}/', '')}`"


def _cut(folder: Path, content: bytes) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(content[:-8])
    return path
