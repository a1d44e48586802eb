"""Makes the runs of a plan and collects the evidence.

::

    twin: undisturbed ─▶ index, cold start ─▶ every other run: its faults ─▶ evidence ─▶ invariants
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import ValidationError

from medr3.chaos.cluster import Cluster
from medr3.chaos.conductor import Conductor, RunFailed, Say
from medr3.chaos.evidence import DriverLife, Evidence, files_left, heldout_of, read_run, start_s
from medr3.chaos.faults import KINDS
from medr3.chaos.plan import Plan, RunPlan, Scheduled, schedule
from medr3.chaos.processes import SHARED_MEMORY
from medr3.chaos.scene import Scene
from medr3.config import RunConfig, load
from medr3.errors import UserError
from medr3.evaluation.ablation import share_start
from medr3.run.manifest import write_json
from medr3.run.services import unique_name

# Ray's agents notice the end of their control service only when they next miss it, after a minute.
LEFT_S = 75.0
TWIN, CONFIG = "twin", "config.json"


def make_runs(plan: Plan, seed: int, out: Path, say: Say) -> Iterator[Evidence]:
    """The twin's evidence first, then that of each run of the plan, as it comes; all but a whole twin of this plan is made anew."""
    config = load(plan.config, [*plan.overrides, f"run.seed={seed}"])
    for run in plan.runs:
        for fault in schedule(run, seed):
            _refuse_unfit(run, fault)
    plan = frozen(plan, out)
    twin = _stored_twin(plan, seed, out, config)
    say(f"twin: taken from {twin.folder}" if twin else "twin: the same run, undisturbed")
    twin = twin or _make(plan, RunPlan(name=TWIN), seed, out, config, None, say)
    yield twin
    for run in plan.runs:
        say(f"{run.name}: {run.about or 'faults'}")
        yield _make(plan, run, seed, out, config, twin, say)


def scene_of(plan: Plan, run: RunPlan, seed: int, folder: Path, cluster: Cluster | None) -> Scene:
    """A run as its plan has it, not yet started."""
    where = [f"run.folder={folder}", f"run.name={folder.name}", f"run.seed={seed}"]
    command = [sys.executable, "-m", "medr3.cli", "train", str(plan.config), *plan.overrides, *run.overrides, *where]
    environment = {**(cluster.environment if cluster else {}), **run.environment}
    return Scene(command, folder, folder.with_suffix(".log"), environment, cluster)


def frozen(plan: Plan, out: Path) -> Plan:
    """The plan with its configuration as it is now: a driver that is started again must find the one that it was started with."""
    path = out / CONFIG
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, load(plan.config, plan.overrides).model_dump(mode="json"))
    return plan.model_copy(update={"config": path, "overrides": []})


@contextmanager
def clean_folder(folder: Path, disk_mib: int | None) -> Iterator[None]:
    """An empty folder; a disk of its own where the plan says so, whose content is kept when the disk is taken away."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".log").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if disk_mib is None:
        yield
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise UserError(f"{folder}: no disk of {disk_mib} MiB can be mounted there, which needs root: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        kept = folder.with_name(f"{folder.name}-kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
        folder.rmdir()
        kept.rename(folder)


def _stored_twin(plan: Plan, seed: int, out: Path, config: RunConfig) -> Evidence | None:
    """A twin that an earlier suite made with this very configuration: it takes minutes, and faults change nothing in it."""
    folder = (out / TWIN).resolve()
    if not (folder / "summary.json").exists():
        return None
    try:
        made = load(folder / CONFIG, []).hash()
    except (UserError, ValidationError):  # of another version of this program
        return None
    if made != load(plan.config, [*plan.overrides, f"run.seed={seed}", f"run.name={TWIN}"]).hash():
        return None
    events, audit = read_run(folder)
    return Evidence(
        TWIN, folder, events, audit, "", [DriverLife(events[0].time, events[-1].time, 0, killed=False)], [], 0,
        config.rollout.groups_per_step, wants_end=True, heldout=heldout_of(folder),
    )  # fmt: skip


def _refuse_unfit(run: RunPlan, fault: Scheduled) -> None:
    needs = KINDS[fault.kind].needs
    has = {"nodes": run.nodes > 0, "disk": run.disk_mib is not None, "kept_gcs": "RAY_gcs_storage" in run.environment}
    words = {"nodes": "nodes: 1 or more", "disk": "disk_mib: a size", "kept_gcs": "environment: RAY_gcs_storage"}
    if needs and not has[needs]:
        raise UserError(f"run {run.name}: fault {fault.kind} needs {words[needs]} in the run's plan")


def _make(plan: Plan, run: RunPlan, seed: int, out: Path, config: RunConfig, twin: Evidence | None, say: Say) -> Evidence:
    folder = (out / run.name).resolve()
    with ExitStack() as stack:
        stack.enter_context(clean_folder(folder, run.disk_mib))
        if twin is not None:
            share_start(twin.folder, folder)
        cluster = stack.enter_context(_cluster(run.nodes)) if run.nodes else None
        scene = scene_of(plan, run, seed, folder, cluster)
        stack.callback(scene.end)
        faults, conductor = schedule(run, seed), Conductor(scene, say, start_s(twin.events) if twin else 0.0)
        actors: list[str] = []
        with scene.watcher:
            try:
                conductor.play(faults, stops=run.stops)
                actors = scene.inside("actors").splitlines() if cluster is not None else []
            except RunFailed as error:
                say(f"  {error}")
                conductor.give_up()
        return _evidence(conductor, run, len(faults), config.rollout.groups_per_step, twin, actors)


def _evidence(
    conductor: Conductor, run: RunPlan, planned: int, groups_per_step: int, twin: Evidence | None, actors: list[str]
) -> Evidence:
    scene, folder = conductor.scene, conductor.scene.run_folder
    events, audit = read_run(folder)
    of_cluster = {process.pid for process in scene.cluster.everything()} if scene.cluster else set()
    left = scene.watcher.left_behind(LEFT_S, apart_from=of_cluster)
    weights = SHARED_MEMORY / f"medr3-{unique_name(folder.name, folder)}"
    return Evidence(
        run.name, folder, events, audit, scene.said(), conductor.lives, conductor.faults, planned, groups_per_step,
        wants_end=not run.stops, heldout=heldout_of(folder), processes_left=[f"{each.pid} ({each.command[:80]})" for each in left],
        shared_left=sorted({str(path) for path in scene.watcher.shared_left()} | ({str(weights)} if weights.exists() else set())),
        files_left=files_left(folder), actors_left=actors, descriptors=conductor.descriptors, same_decisions=run.same_decisions,
        twin=twin,
    )  # fmt: skip


@contextmanager
def _cluster(nodes: int) -> Iterator[Cluster]:
    cluster = Cluster.start(nodes)
    try:
        yield cluster
    finally:
        cluster.stop()
