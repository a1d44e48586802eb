"""New weights into shared memory, with their checksum and a canary computed by the learner's own model."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from learner.attention import Layout
from learner.model import Policy, score
from learner.packing import MicroBatch
from learner.shards import weight_shards
from learner.weights_file import SafetensorsLayout, write_shards
from trajectories.checksum import MappedWeights
from trajectories.publication import Canary, Publication
from trajectories.schema import WeightVersion

# The newest version and the two before it: an engine may still be loading the last one while the next is written.
KEPT_VERSIONS = 3


def weights_folder(parent: str, run_id: str) -> Path:
    """Where the weights of a run are published: shared memory, or temporary files where the machine has none."""
    shared = Path(parent)
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"medr3-{run_id}"


def remove_weights(folder: Path) -> None:
    """At the end of a run: shared memory is not freed by itself."""
    shutil.rmtree(folder, ignore_errors=True)


class WeightPublisher:
    """Writes one file per version; every rank calls `publish` and writes its rows, rank 0 gets the publication."""

    def __init__(self, folder: Path, canary_token_ids: list[int], dtype: torch.dtype, rank: int, device: torch.device) -> None:
        if len(canary_token_ids) < 2:
            raise ValueError(f"the canary needs at least 2 tokens, one to predict the other; got {canary_token_ids}")
        self.folder, self.dtype, self.rank = folder, dtype, rank
        self.canary_ids = canary_token_ids
        self.canary = _canary_micro_batch(canary_token_ids, device)
        self.layout: SafetensorsLayout | None = None
        self.seconds: dict[str, float] = {}  # of the latest publication, by stage

    def publish(self, policy: Policy, version: WeightVersion) -> Publication | None:
        """The file appears under its name only when it is complete, and takes the place of the oldest that is kept."""
        began = time.perf_counter()
        logprobs = score(policy, self.canary).tolist()
        scored = time.perf_counter()
        if self.layout is None:  # shapes never change
            self.layout = SafetensorsLayout.of({shard.name: shard.shape for shard in weight_shards(policy)}, self.dtype)
        path = self.folder / f"{version}.safetensors"
        unfinished = path.with_suffix(".unfinished")
        if self.rank == 0:
            self._make_room(unfinished)
        write_shards(unfinished, self.layout, weight_shards(policy), self.dtype, self.rank)
        written = time.perf_counter()
        checksum = shared_checksum(unfinished)
        self.seconds = {"canary": scored - began, "write": written - scored, "checksum": time.perf_counter() - written}
        if self.rank != 0:
            return None
        unfinished.replace(path)
        return Publication(version, str(path), checksum, self.layout.nbytes, Canary(self.canary_ids, logprobs))

    def _make_room(self, unfinished: Path) -> None:
        """The memory of the version that falls out becomes the next one's: fresh pages cost more than the copy into them."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for broken_off in self.folder.glob("*.unfinished"):
            broken_off.unlink()
        versions = sorted(self.folder.glob("*.safetensors"), key=lambda file: WeightVersion.parse(file.stem))
        for outdated in versions[: 1 - KEPT_VERSIONS]:
            outdated.replace(unfinished)  # from here on nobody finds it any more
            if not _is_unread(unfinished):
                unfinished.unlink()  # whoever still reads it keeps it as it is


def shared_checksum(path: Path) -> str:
    """The file's checksum on every rank; each reads its share of the blocks."""
    with MappedWeights(path) as weights:
        if not dist.is_initialized():
            return weights.checksum(weights.digests())
        ranks = dist.get_world_size()
        parts: list[list[bytes]] = [[]] * ranks
        dist.all_gather_object(parts, weights.digests(dist.get_rank(), ranks))
        return weights.checksum(list(filter(None, chain.from_iterable(zip_longest(*parts)))))


def _is_unread(path: Path) -> bool:
    """Whether no process has the file open or mapped: only then does Linux grant a write lease, given back at once."""
    with path.open("r+b") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:  # it is being read, or its file system knows no leases
            return False
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _canary_micro_batch(token_ids: list[int], device: torch.device) -> MicroBatch:
    """Every token after the first; at temperature 1, because engines report the log-probabilities of a prompt without one."""
    tokens = len(token_ids)
    after_first = torch.arange(1, tokens, device=device)
    return MicroBatch(
        token_ids_t=torch.tensor(token_ids, device=device),
        position_ids_t=torch.arange(tokens, device=device),
        layout=Layout.of(np.array([tokens]), device),
        chosen_n=after_first,
        flat_n=after_first,
        episode_n=torch.zeros_like(after_first),
        temperature_n=torch.ones(tokens - 1, device=device),
        weight=1.0,
    )
