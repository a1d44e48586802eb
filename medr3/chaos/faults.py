"""The kinds of faults. Each is done to real processes, and says what must happen then.

A kind is a function of the scene that does the fault and returns, in words, what it hit. Those that last undo themselves before
they return.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from medr3.chaos.plan import Scheduled
from medr3.chaos.processes import OTHER, Process
from medr3.chaos.scene import Scene

Ends = Literal["never", "always", "may"]
Doing = Callable[[Scene, Scheduled], str]

# A resumed run is back after 20 to 40 s on two idle cores: Ray, the index, a vLLM engine and the learner start anew. Three times that;
# and on a machine that is shared, three times what the twin's own start took.
LIMIT_S = 120.0
# What a stopped process does not answer: longer than a ping of a suspect engine, shorter than Ray's patience with a silent process.
STOPPED_S = 10.0
GCS_PORT = "--gcs_server_port="


@dataclass(frozen=True)
class FaultKind:
    """One kind of fault. `ends_driver` says whether the run's driver survives it; one that ends is started again."""

    name: str
    does: str
    must: str
    inject: Doing
    ends_driver: Ends
    needs: Literal["", "nodes", "disk", "kept_gcs"] = ""
    limit_s: float = LIMIT_S


KINDS: dict[str, FaultKind] = {}


class NoTarget(Exception):
    """No process of the kind that was to be hit is there at this moment."""


def fault(
    name: str,
    does: str,
    must: str,
    ends_driver: Ends,
    needs: Literal["", "nodes", "disk", "kept_gcs"] = "",
    limit_s: float = LIMIT_S,
) -> Callable[[Doing], Doing]:
    def register(inject: Doing) -> Doing:
        KINDS[name] = FaultKind(name, does, must, inject, ends_driver, needs, limit_s)
        return inject

    return register


def choose(scene: Scene, role: str, pick: float) -> Process:
    """One of the run's processes of this role."""
    there = scene.processes()
    found = [process for process in there if process.role == role]
    if not found:
        roles = sorted({process.role for process in there if process.role != OTHER})
        raise NoTarget(f"the run has no {role} now, but {', '.join(roles) or 'nothing'}")
    return found[int(pick * len(found))]


def _kills(role: str) -> Doing:
    def kill(scene: Scene, fault: Scheduled) -> str:
        target = choose(scene, role, fault.pick)
        scene.strike(target, signal.SIGKILL)
        return f"{role} {target.pid}"

    return kill


def _stops(role: str) -> Doing:
    def stop(scene: Scene, fault: Scheduled) -> str:
        target, seconds = choose(scene, role, fault.pick), fault.seconds or STOPPED_S
        scene.strike(target, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            if target.lives:  # it may have been replaced meanwhile
                os.kill(target.pid, signal.SIGCONT)
        return f"{role} {target.pid}, for {seconds:g} s"

    return stop


for _name, _role, _must, _ends in (
    ("driver_killed", "driver", "the same command goes on from the manifest", "always"),
    ("engine_process_killed", "engine process", "its groups go elsewhere, and another engine takes its place", "never"),
    ("rollout_actor_killed", "rollout actor", "its groups go elsewhere, and another engine takes its place", "never"),
    ("learner_worker_killed", "learner worker", "the run ends with its reason, and goes on from the manifest", "always"),
    ("train_controller_killed", "train controller", "the run ends with its reason, and goes on from the manifest", "always"),
    ("exchange_killed", "exchange", "the run ends with its reason, and goes on from the manifest", "always"),
    ("replica_killed", "replica", "searches are sent again, and Serve starts another replica", "never"),
    ("serve_controller_killed", "serve controller", "searches go on meanwhile, and Ray starts it again", "never"),
    ("raylet_killed", "raylet", "the node is gone: the run ends, and goes on from the manifest", "always"),
):  # fmt: skip
    fault(_name, f"SIGKILL to the {_role}", _must, _ends)(_kills(_role))  # type: ignore[arg-type]

for _name, _role, _must, _ends in (
    ("driver_stopped", "driver", "everything waits for it, and goes on", "never"),
    ("engine_process_stopped", "engine process", "its groups wait, or go elsewhere when it does not answer", "never"),
    ("rollout_actor_stopped", "rollout actor", "its groups wait, or go elsewhere when it does not answer", "never"),
    ("learner_worker_stopped", "learner worker", "the step takes longer", "never"),
    ("replica_stopped", "replica", "searches wait, or fail by name and their groups are tried again", "never"),
):  # fmt: skip
    fault(_name, f"SIGSTOP to the {_role} for some seconds, then SIGCONT", _must, _ends)(_stops(_role))  # type: ignore[arg-type]


@fault(
    "gcs_killed", "SIGKILL to Ray's control service, which nobody starts again", "the run ends, and goes on from the manifest",
    "always", limit_s=240.0,  # Ray's processes wait a minute for it before they give up
)  # fmt: skip
def _kill_gcs(scene: Scene, fault: Scheduled) -> str:
    return _kills("gcs")(scene, fault)


@fault(
    "gcs_restarted", "SIGKILL to Ray's control service, started again with what it kept on the disk", "the run goes on", "never",
    needs="kept_gcs",
)  # fmt: skip
def _restart_gcs(scene: Scene, fault: Scheduled) -> str:
    target = choose(scene, "gcs", fault.pick)
    port = scene.ray_address().rpartition(":")[2]  # everybody knows it by now, so it is not to be chosen anew
    again = scene.copy_of(target)
    command = [f"{GCS_PORT}{port}" if word.startswith(GCS_PORT) else word for word in again.command]
    scene.strike(target, signal.SIGKILL)
    time.sleep(fault.seconds or 2.0)  # as long as whatever looks after a head takes to notice
    return f"gcs {target.pid}, started again as {scene.start_beside(replace(again, command=command))}"


@fault(
    "searches_failing", "half of all searches fail", "their episodes fail by name, and their groups are tried again", "never"
)
def _fail_searches(scene: Scene, fault: Scheduled) -> str:
    seconds = fault.seconds or 5.0
    scene.inside("retrieval", "--failure-rate", "0.5", "--seconds", f"{seconds:g}")
    return f"half of all searches, for {seconds:g} s"


@fault("searches_slow", "every batch of searches takes 2 s longer", "episodes wait", "never")
def _slow_searches(scene: Scene, fault: Scheduled) -> str:
    seconds = fault.seconds or 6.0
    scene.inside("retrieval", "--delay", "2", "--seconds", f"{seconds:g}")
    return f"2 s for each batch, for {seconds:g} s"


@fault(
    "object_store_full",
    "Ray's object store is filled, and kept full for some seconds",
    "rows go through it all the same",
    "never",
)
def _fill_store(scene: Scene, fault: Scheduled) -> str:
    seconds = fault.seconds or 8.0
    scene.inside("fill", "--seconds", f"{seconds:g}")
    return f"for {seconds:g} s"


@fault(
    "disk_full", "the disk that the run writes to is filled, and emptied again", "the run ends with a word about it, and goes on then",
    "may", needs="disk",
)  # fmt: skip
def _fill_disk(scene: Scene, fault: Scheduled) -> str:
    filler, seconds = scene.run_folder / "filler", fault.seconds or 8.0
    filled = _fill(filler)
    scene.struck_at = time.time()  # what was trained while it was being filled has survived nothing
    try:
        time.sleep(seconds)
    finally:
        filler.unlink(missing_ok=True)
    return f"{filled / 2**20:.0f} MiB, for {seconds:g} s"


def _fill(path: os.PathLike[str]) -> int:
    """Writes until nothing fits; returns how many bytes did."""
    block, written = b"\0" * 2**20, 0
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123  # unbuffered, so that every byte is really there
        while block:
            try:
                written += file.write(block) or 0
            except OSError:  # smaller pieces, down to the last byte
                block = block[: len(block) // 2]
    return written


@fault(
    "node_killed",
    "every process of a node dies at once, and another node comes",
    "engines start elsewhere",
    "never",
    needs="nodes",
)
def _kill_node(scene: Scene, fault: Scheduled) -> str:
    assert scene.cluster is not None, "a plan with node faults has nodes"
    return scene.cluster.lose_node(fault.pick)


@fault(
    "spot_notice", "a node is told that it goes in some seconds, and goes then; another one comes", "its engines move before", "never",
    needs="nodes",
)  # fmt: skip
def _notice(scene: Scene, fault: Scheduled) -> str:
    assert scene.cluster is not None, "a plan with node faults has nodes"
    return scene.cluster.give_notice(fault.pick, fault.seconds or 30.0)
