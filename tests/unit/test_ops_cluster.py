"""What a cluster says of itself against what a run needs: facts in, lines out."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr3.config import RunConfig, load
from medr3.errors import UserError
from medr3.ops.check import Check, require
from medr3.ops.cluster_check import check_cluster, shapes
from medr3.ops.demand import Demand, Shape, demands, unplaceable

ROOT = Path(__file__).parents[2]
GIB = 2**30


def node(address: str, head: bool = False, **resources: float) -> dict[str, Any]:
    marks = {f"node:{address}": 1.0, "object_store_memory": 1e9, "memory": 8.0 * GIB} | (
        {"node:__internal_head__": 1.0} if head else {}
    )
    return {
        "address": address, "id": f"id-{address}", "resources": {**marks, **resources}, "head": head, "version": metadata.version("medr3"),
        "plugin": True, "ray": metadata.version("ray"), "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "gpus_mib": [81_559] * int(resources.get("GPU", 0)), "shared_memory_free": GIB, "sees": True,
    }  # fmt: skip


def facts() -> dict[str, Any]:
    return {
        "nodes": [node("10.0.0.1", head=True), node("10.0.0.2", CPU=96, GPU=4, learner=1), node("10.0.0.3", CPU=96, GPU=4, rollout=1)],
        "types": [
            {"name": "learner", "resources": {"CPU": 96, "GPU": 4, "learner": 1}, "most": 1},
            {"name": "rollout", "resources": {"CPU": 96, "GPU": 4, "rollout": 1}, "most": 2},
            {"name": "retrieval", "resources": {"CPU": 8, "retrieval": 1}, "most": 1},
        ],
        "growth_known": True, "folder": {"path": "/shared/run", "refused": "", "free": 100 * GIB, "resumes": False},
    }  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    overrides = ["run.placement=groups", "run.folder=/shared/run", "learner.weights_folder=/shared/weights"]
    return load(ROOT / "configs/recipes/qwen2.5-7b.yaml", overrides)


def wrong(found: dict[str, Any], config: RunConfig | None) -> list[str]:
    return [str(check) for check in check_cluster(found, config) if not check.ok]


def test_a_cluster_that_has_everything_passes(config: RunConfig) -> None:
    assert wrong(facts(), config) == []
    assert wrong(facts(), None) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.0.9"}, "version: node 10.0.0.3 has 0.0.9, this is "),
        ({"version": "", "plugin": False}, "version: node 10.0.0.3 has no medr3, this is "),
        ({"plugin": False}, "vLLM plugin: node 10.0.0.3 has no medr3_weights"),
        ({"ray": "2.40.0"}, "Ray: node 10.0.0.3 has Ray 2.40.0 on Python "),
        ({"gpus_mib": [24_576]}, "GPU memory: node 10.0.0.3 has a GPU of 24 GiB, and hardware says 80"),
        ({"sees": False}, "run folder: node 10.0.0.3 does not see what the head wrote to /shared/run"),
        ({"silent": "no answer in 60 s"}, "nodes: 10.0.0.3: no answer in 60 s"),
    ],
)
def test_a_node_that_is_not_as_the_others_is_named(config: RunConfig, change: dict[str, Any], said: str) -> None:
    found = facts()
    found["nodes"][2] |= change
    lines = wrong(found, config)
    assert any(line.startswith(said) and "; " in line for line in lines), lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"refused": "Read-only file system"},
            "run folder: /shared/run on the head: Read-only file system; make room there, or",
        ),
        ({"free": GIB // 2}, "run folder: /shared/run has 0.5 GiB free; make room: 2 GiB are the least"),
    ],
)
def test_a_folder_that_takes_no_run_is_refused(config: RunConfig, change: dict[str, Any], said: str) -> None:
    found = facts()
    found["folder"] |= change
    assert any(line.startswith(said) for line in wrong(found, config)), wrong(found, config)


def test_weights_in_the_memory_of_one_machine_reach_no_other(config: RunConfig) -> None:
    near = config.model_copy(deep=True)
    near.learner.weights_folder = "/dev/shm"
    (line,) = wrong(facts(), near)
    assert line.startswith("weights: published in /dev/shm, which machines do not share; set learner.weights_folder")
    one_machine = facts()
    for each in one_machine["nodes"]:
        each["address"] = "127.0.0.1"
    assert wrong(one_machine, near) == []


def test_what_finds_no_room_is_told_with_what_there_is(config: RunConfig) -> None:
    found = facts()
    found["types"] = found["types"][:1]
    (line,) = wrong(found, config)
    assert line.startswith(
        "room: engines: 4 × (1 CPU, 1 GPU, 0.001 rollout) are asked for, and none finds room: there are at most 1 × head"
    )
    assert "retrieval replicas: 1 × (1 CPU, 0.001 retrieval) are asked for, and none finds room" in line
    assert "rollout.num_engines" in line


def test_without_an_autoscaler_there_is_what_there_is_and_on_kubernetes_more_may_come(config: RunConfig) -> None:
    found = facts() | {"types": []}
    assert [shape.most for shape in shapes(found)] == [1, 1, 1]
    assert [line.partition(":")[0] for line in wrong(found, config)] == ["room"], "nothing holds the index"
    assert wrong(found | {"growth_known": False}, config) == []


def test_a_group_of_nodes_that_nobody_asks_for_is_mentioned() -> None:
    anywhere = load(ROOT / "configs/recipes/qwen2.5-7b.yaml", ["run.folder=/shared/run"])
    room = next(check for check in check_cluster(facts(), anywhere) if check.name == "room")
    assert "run.placement=groups uses them" in room.found


BUNDLES = st.fixed_dictionaries({"CPU": st.integers(0, 4), "GPU": st.integers(0, 2)})


@given(st.lists(st.tuples(st.integers(1, 4), BUNDLES), max_size=3), st.lists(st.tuples(st.integers(0, 4), BUNDLES), max_size=3))
def test_nothing_is_refused_that_a_node_of_its_own_would_hold(asked: list[Any], there: list[Any]) -> None:
    wanted = [Demand(f"kind {n}", count, bundle) for n, (count, bundle) in enumerate(asked)]
    nodes = [Shape(f"shape {n}", resources, most) for n, (most, resources) in enumerate(there)]
    refused = unplaceable(wanted, nodes)
    for demand in wanted:
        fitting = sum(
            shape.most for shape in nodes if all(shape.resources[name] >= demand.bundle[name] for name in demand.bundle)
        )
        if not fitting:
            assert any(line.startswith(f"{demand.kind}: ") for line in refused)
        if fitting >= sum(each.count for each in wanted):
            assert not any(line.startswith(f"{demand.kind}: ") for line in refused)


def test_placement_in_groups_is_asked_of_every_kind_and_changes_no_run() -> None:
    grouped, plain = (load(ROOT / "configs/demo.yaml", overrides) for overrides in (["run.placement=groups"], []))
    assert {name for demand in demands(grouped) for name in demand.bundle} == {"CPU", "learner", "rollout", "retrieval"}
    assert {name for demand in demands(plain) for name in demand.bundle} == {"CPU"}
    assert grouped.hash() == plain.hash(), "a run may go on elsewhere"
    own = load(ROOT / "configs/demo.yaml", ["run.placement=groups", "rollout.engine.resources={rollout: 0.5}"])
    assert own.rollout.engine.resources == {"rollout": 0.5}


def test_every_failure_is_a_line() -> None:
    with pytest.raises(UserError) as refused:
        require([Check("a", True, "x", "y"), Check("b", False, "c", "d"), Check("e", False, "f", "g")])
    assert str(refused.value) == "b: c; d\ne: f; g"
