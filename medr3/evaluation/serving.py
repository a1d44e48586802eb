"""What an evaluation stands on: the parts of a run without its learner, started and ended together.

::

    index ─▶ Ray Serve ─▶ handle ─┬─▶ RolloutPool ◀─ one publication: the folder's weights, with a canary computed by transformers
                                  └─▶ RetrievalClient ─▶ EpisodeRunner ─▶ a server elsewhere
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from actors.episodes import EpisodeRunner
from actors.examining import examined
from actors.messages import Examined, GroupRequest
from actors.pool import RolloutPool
from actors.rollout import EXAMINATION, searcher_for
from actors.tokens import EpisodeTokenizer
from actors.tools import Searcher
from medr3.config import RunConfig
from medr3.errors import UserError
from medr3.evaluation.endpoint import EndpointPolicy
from medr3.evaluation.written import WrittenText
from medr3.run.canary import canary_tokens
from medr3.run.services import SERVE_GRACE_S, unique_name
from retrieval_service.app import deploy, undeploy
from retrieval_service.config import RetrievalConfig
from rewards.composition import score
from tasks.world import Universe
from trajectories.publication import Publication
from trajectories.schema import WeightVersion

SHOWN_CHARACTERS = 300  # of what a library says of a model that it does not open
ANY_LENGTH = 1 << 30  # how long a context may be is for the server to say


@asynccontextmanager
async def retrieval(index: Path, config: RunConfig) -> AsyncIterator[Any]:
    """A handle to the index, served as in a run."""
    app_name = f"medr3-{_name(config)}-retrieval"
    handle = await asyncio.to_thread(deploy, index, config.retrieval, app_name)
    try:
        yield handle
    finally:
        with suppress(Exception):  # what is gone already is no error
            await asyncio.wait_for(asyncio.to_thread(undeploy, app_name), SERVE_GRACE_S)


@asynccontextmanager
async def engines(
    config: RunConfig, universe: Universe, model: Path, version: WeightVersion, handle: Any
) -> AsyncIterator[RolloutPool]:
    """Engines that were proved to have the folder's weights."""
    import ray

    from learner.publishing import remove_weights, weights_folder

    folder = weights_folder(config.learner.weights_folder, _name(config))
    publish = ray.remote(publish_folder).options(num_cpus=1, max_retries=0)
    published: Any = publish.remote(
        str(model.resolve()), str(folder), canary_tokens(universe, model), config.rollout.engine.dtype, version
    )
    pool = RolloutPool(config.rollout, handle, config.retrieval)
    try:
        await pool.start(str(model.resolve()), _published(published, model))
        yield pool
    finally:
        with suppress(Exception):
            await pool.stop()
        remove_weights(folder)


def publish_folder(model: str, folder: str, canary: list[int], dtype: str, version: WeightVersion) -> Publication:
    """Runs in a process of its own. The canary's log-probabilities are transformers', so an engine that computes otherwise shows."""
    import torch

    from learner.config import LearnerConfig
    from learner.model import load_causal_lm, make_policy
    from learner.publishing import WeightPublisher

    torch.set_num_threads(1)
    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    policy = make_policy(load_causal_lm(Path(model)).to(wanted), LearnerConfig())
    publication = WeightPublisher(Path(folder), canary, wanted, 0, torch.device("cpu")).publish(policy, version)
    assert publication is not None, "rank 0 gets the publication"
    return publication


class EndpointExamination:
    """A server's model, examined as engines are: the same protocol, retrieval, rules and records."""

    def __init__(
        self,
        policy: EndpointPolicy,
        text: WrittenText,
        handle: Any,
        config: RetrievalConfig,
        searcher: Searcher | None = None,
    ) -> None:
        """`searcher` stands in for the handle where an index of this process is searched."""
        tokenizer = EpisodeTokenizer(text)
        self._tags = tokenizer.tags
        self._runner = EpisodeRunner(policy, tokenizer, searcher or searcher_for(handle, config), config.mode, ANY_LENGTH)

    async def examine(self, requests: list[GroupRequest]) -> list[Examined]:
        rolled = await asyncio.gather(*map(self._runner.run, requests))
        return [
            examined(request.question, episode, score(request.question, episode, EXAMINATION), sample, self._tags)
            for request, episodes in zip(requests, rolled, strict=True)
            for sample, episode in enumerate(episodes)
        ]


async def _published(reference: Any, model: Path) -> Publication:
    from ray.exceptions import RayTaskError

    try:
        publication: Publication = await reference
    except RayTaskError as error:
        reason = " ".join(str(error.cause).split())[:SHOWN_CHARACTERS]
        raise UserError(f"{model}: does not open as a causal language model: {type(error.cause).__name__}: {reason}") from None
    return publication


def _name(config: RunConfig) -> str:
    """A run that trains, and other evaluations of it, have names of their own."""
    return unique_name(f"eval-{os.getpid()}-{config.run.name}", config.run.folder)
