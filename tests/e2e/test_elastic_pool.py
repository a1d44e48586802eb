"""A pool on a cluster that grows and shrinks under it, and that loses processes, a node, and a node with notice.

One cluster with Ray's real autoscaler, one run on it (`elastic_story.py`); each test looks at a part of what it told.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.elastic_cluster import NOTICE_S, elastic_cluster
from trajectories.audit import audit
from trajectories.events import EventKind, read_events

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MAX_NODES = 6  # four engines, one node that has been given notice, one that is lost and not yet given up
IDLE_S = 3
STORY_S = 800  # eight engines start on two cores, one or two at a time
# Until the pool knows. A process's end closes its connections; a node's is known when five of Ray's health checks, 3 s apart, failed.
KNOWN_S = {"vllm": 15, "actor": 15, "node": 40}
WHOLE_S = 170  # an engine's start takes 15 to 60 s on two busy cores; the autoscaler gives a silent node up after 30 s, a new one takes 5


class Story:
    def __init__(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        self.folder, self._lines = folder, lines

    def __getitem__(self, what: str) -> dict[str, Any]:
        return next(line for line in self._lines if line["what"] == what)

    @property
    def complete(self) -> bool:
        return bool(self._lines) and self._lines[-1]["what"] == "ended"

    def killed(self, process: str) -> dict[str, Any]:
        return next(line for line in self._lines if line["what"] == "killed" and line["process"] == process)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("elastic")
    with elastic_cluster(MAX_NODES, IDLE_S) as environment:
        told, complained = folder / "told.jsonl", folder / "complained.txt"
        with told.open("w") as out, complained.open("w") as errors, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", "tests.e2e.elastic_story", str(folder)],
                cwd=ROOT, env=environment, stdout=out, stderr=errors, timeout=STORY_S, check=False,
            )  # fmt: skip
        lines = [line for line in told.read_text().splitlines() if line.startswith("{")]  # the others are Ray's own
        story = Story(folder, [json.loads(line) for line in lines])
        print(told.read_text())
        assert story.complete, f"{told.read_text()}\n{complained.read_text()[-4000:]}"
        yield story


def test_it_grows_from_one_engine_to_four_and_back_and_the_nodes_with_it(story: Story) -> None:
    assert story["started"]["states"] == {"engine-0.0": "healthy"}
    assert story["grown"]["nodes"] == 4
    assert story["shrunk"]["nodes_gone_s"] < 60
    scaled = [event for event in read_events(story.folder / "events.jsonl").events if event.kind is EventKind.SCALED]
    targets = [event["target"] for event in scaled]
    assert targets[0] == 2 and max(targets) == 4 and targets[-1] == 1
    assert len(targets) <= 8, f"flapping: {[(event['target'], event['reason']) for event in scaled]}"
    assert "the trainer waited" in scaled[0]["reason"]


@pytest.mark.parametrize("process", ["vllm", "actor", "node"])
def test_what_is_killed_is_noticed_and_replaced(story: Story, process: str) -> None:
    killed = story.killed(process)
    assert killed["in_hand"] > 0, "nothing was in flight, so nothing was proved"
    assert killed["known_s"] < KNOWN_S[process]
    assert killed["whole_s"] < WHOLE_S
    assert killed["by"] != killed["engine"], "a replacement is another engine with another id"


def test_a_notice_moves_the_engine_before_its_node_goes(story: Story) -> None:
    noticed = story["noticed"]
    assert noticed["heeded_s"] < 10
    assert noticed["left_s"] < NOTICE_S
    assert noticed["whole_s"] < WHOLE_S
    drained = [
        event["drained"] for event in read_events(story.folder / "events.jsonl").events if event.kind is EventKind.SCALED
    ]
    assert [noticed["engine"]] in drained


def test_no_group_is_lost_answered_twice_stale_or_sampled_under_unproved_weights(story: Story) -> None:
    ended = story["ended"]
    assert ended["answered_twice"] == []
    assert ended["late"] == 0
    assert ended["unproved"] == []
    assert ended["oldest"] <= 1
    assert ended["voided"] == 0
    assert set(ended["reasons"]) <= {"run ended"}  # so none was stale
    assert ended["trained"] == 32 * ended["steps"] > 0
    assert ended["admitted"] == ended["trained"] + ended["dropped"]
    assert ended["requeued"] >= 3, "the groups of what was killed went elsewhere"
    assert audit(story.folder).violations == []
