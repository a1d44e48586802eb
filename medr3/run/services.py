"""What a run stands on: the index, the cold-started model, and the three services, started together and ended together."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray

from actors.pool import RolloutPool
from learner.client import LearnerClient
from learner.config import LearnerConfig
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.background import BackgroundReports, Report
from medr3.run.canary import canary_speller
from retrieval_service.app import deploy, handle_of, undeploy
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex, IndexRefused
from retrieval_service.manifest import IndexManifest
from retrieval_service.types import SearchQuery
from security.local_ray import stay_on_this_machine
from tasks.cold_start import ColdStartStalled, cold_start
from tasks.config import ColdStartConfig
from tasks.questions import Document
from tasks.tokenizer import load_tokenizer
from tasks.world import Universe
from trajectories.publication import Publication, WeightAck
from trajectories.schema import WeightVersion

SERVE_GRACE_S = 10
# Usage reports would leave the machine; direct ingress opens ports that nothing here calls; a loaded machine starts slowly.
QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",  # ten times a second by default, for which its controller took 9 % of a small run
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def connect_ray(config: RunConfig) -> None:
    """Joins the cluster of the surrounding job or of the configuration; without one, starts a Ray of this machine."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray runs its workers at a low priority, so that on a shared machine any other program starves engines and learner.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for name in ("ray", "ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = config.run.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": QUIET_ENVIRONMENT})
    else:
        stay_on_this_machine()
        ray.init(num_cpus=config.run.ray_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def prepare_index(config: RunConfig, universe: Universe) -> Path:
    """The index that the configuration names, or one of the run's own world, built once."""
    if config.retrieval.index:
        folder = Path(config.retrieval.index)
        if not folder.is_dir():
            raise UserError(f"retrieval.index: {folder} does not exist: build it, or leave retrieval.index empty")
    else:
        folder = config.run.folder / "index"
        if not folder.is_dir():
            HybridIndex.build(universe.documents(), folder, config.retrieval)
    try:
        HybridIndex.load(folder, config.retrieval)
    except IndexRefused as error:
        raise UserError(str(error)) from None
    return folder


def _teach(
    universe: Universe,
    config: ColdStartConfig,
    index_folder: str,
    retrieval: RetrievalConfig,
    top_k: int,
    seed: int,
    folder: str,
) -> Generator[str, None, None]:
    """Runs in a process of its own: yields progress lines, leaves the model in `folder`."""
    import torch

    torch.set_num_threads(config.cpu_threads)
    index = HybridIndex.load(Path(index_folder), retrieval)

    @cache  # the demonstrations ask far fewer different questions than there are demonstrations
    def search(collection: str, query: str) -> list[Document]:
        """The teacher sees what the retrieval service would answer."""
        result = index.search([SearchQuery(query=query, k=top_k, collection=collection, mode=retrieval.mode)])[0]
        return [Document(id=hit.id, text=hit.text, evidence_level=hit.evidence_level or None) for hit in result.hits]

    yield from cold_start(universe, config, search, seed, Path(folder))


def _imitate(model: str, config: ColdStartConfig, learner: LearnerConfig, seed: int, folder: str) -> Generator[str, None, None]:
    """Runs in a process of its own, which may take a GPU: yields progress lines, leaves the model in `folder`."""
    from medr3.run.imitation import imitate

    yield from imitate(Path(model), config, learner, seed, Path(folder))


async def prepare_model(config: RunConfig, universe: Universe, index_folder: Path, say: Callable[[str], None]) -> Path:
    """The model that the configuration names, or the cold-started one of this run, made once."""
    base = None if config.model.path is None else check_model(config.model.path)
    if base is not None and not config.cold_start.episodes:
        return base
    if base is None and config.cold_start.episodes:
        raise UserError(
            "cold_start.episodes: the demo's tiny model does not know their words: name the model that learns, model.path"
        )
    folder = config.run.folder / "cold_start"
    if (folder / "cold_start.json").exists():
        say(f"cold start: taken from {folder}")
        return folder
    top_k = max(config.phase_budget(phase).top_k for phase in config.curriculum.phases)
    options = {"num_returns": "streaming", "num_cpus": 1, "max_retries": 0}
    lines: Any
    if base is not None:
        gpus = {"num_gpus": config.learner.gpus_per_worker} if config.learner.gpus_per_worker else {}
        episodes = tuple(str(Path(path).resolve()) for path in config.cold_start.episodes)  # a worker may stand elsewhere
        start = config.cold_start.model_copy(update={"episodes": episodes})
        imitation = ray.remote(_imitate).options(**options, **gpus)
        lines = imitation.remote(str(base.resolve()), start, config.learner, config.run.seed, str(folder.resolve()))
    else:
        task = ray.remote(_teach).options(**options)
        lines = task.remote(
            universe, config.cold_start, str(index_folder), config.retrieval, top_k, config.run.seed, str(folder.resolve())
        )
    try:
        async for line in lines:
            say(await line)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ColdStartStalled | UserError):
            raise UserError(str(error.cause)) from None
        raise
    return folder


def check_model(folder: Path) -> Path:
    """A folder that engines, learner and prompts can all use."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path: {folder} has no config.json: name the folder of a Hugging Face model")
    # The template's own file says enough: to open a tokenizer takes seconds of imports before anything starts.
    if not (folder / "chat_template.jinja").is_file() and not load_tokenizer(folder).chat_template:
        raise UserError(
            f"model.path: the tokenizer of {folder} has no chat template, which every prompt is put into: add one to its"
            " tokenizer_config.json"
        )
    return folder


@dataclass
class Services:
    """Retrieval, engines and learner of one run."""

    pool: RolloutPool
    learner: LearnerClient
    app_name: str
    publication: Publication
    reports: BackgroundReports | None
    ready: dict[str, float]  # when each of them was, in Unix seconds

    @classmethod
    async def start(
        cls,
        config: RunConfig,
        universe: Universe,
        index_folder: Path,
        model: Path,
        version: WeightVersion,
        checkpoint: Path | None,
        on_ack: Callable[[WeightAck], None],
        on_published: Callable[[Publication], None],
        on_report: Callable[[Report], None],
    ) -> Services:
        """Starts all three; engines are proved to hold the learner's weights before this returns."""
        unique = unique_name(config.run.name, config.run.folder)
        app_name = f"medr3-{unique}-retrieval"
        learner = LearnerClient(config.learner, unique, canary_speller(universe, model))
        pools: list[RolloutPool | BackgroundReports] = []  # in the order in which they are ended
        ready: dict[str, float] = {}

        async def publish() -> Publication:
            publication = await learner.start(model, version, checkpoint, config.run.folder / "ray_train")
            on_published(publication)
            return publication

        # All start at once: a handle needs no application yet, and engines await the weights only when they run.
        publishing = asyncio.create_task(publish())
        try:
            handle = handle_of(app_name)
            pool = RolloutPool(config.rollout, handle, config.retrieval, on_ack=on_ack)
            reports = BackgroundReports(config, universe, handle, on_report) if config.evaluation.engines else None
            pools += [reports, pool] if reports else [pool]
            await asyncio.gather(
                _timed(ready, "learner", publishing),
                _timed(ready, "retrieval", asyncio.to_thread(deploy, index_folder, config.retrieval, app_name)),
                _timed(ready, "engines", asyncio.gather(*(each.start(str(model.resolve()), publishing) for each in pools))),
            )
            return cls(pool, learner, app_name, await publishing, reports, ready)
        except BaseException:
            publishing.cancel()
            await _stop(pools, learner, app_name)
            raise

    async def stop(self) -> None:
        """Ends all three; what is gone already is no error."""
        await _stop([self.reports, self.pool] if self.reports else [self.pool], self.learner, self.app_name)


async def _timed(ready: dict[str, float], name: str, start: Awaitable[Any]) -> None:
    await start
    ready[name] = time.time()


async def _stop(pools: Sequence[RolloutPool | BackgroundReports], learner: LearnerClient, app_name: str) -> None:
    for end in (*(pool.stop for pool in pools), learner.stop):
        with suppress(Exception):
            await end()
    with suppress(Exception):
        await asyncio.wait_for(asyncio.to_thread(undeploy, app_name), SERVE_GRACE_S)


def unique_name(run: str, folder: Path) -> str:
    """Runs of one name may share a machine's memory, or a cluster's applications: their folders tell them apart."""
    return f"{run}-{zlib.crc32(str(folder).encode()):08x}"


def index_hash(folder: Path) -> str:
    """The hash that every hit of this index carries."""
    return IndexManifest.read(folder).index_hash
