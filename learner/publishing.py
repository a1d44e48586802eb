"""New weights into shared memory, with their checksum and a canary computed by the learner's own model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from learner.model import Policy, full_weights, score
from trajectories.checksum import weights_checksum
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
    """Writes one file per version; every rank calls `publish`, rank 0 writes and gets the publication."""

    def __init__(self, folder: Path, canary_token_ids: list[int], dtype: torch.dtype, rank: int, device: torch.device) -> None:
        if len(canary_token_ids) < 2:
            raise ValueError(f"the canary needs at least 2 tokens, one to predict the other; got {canary_token_ids}")
        self.folder, self.dtype, self.rank = folder, dtype, rank
        self.canary_ids = canary_token_ids
        self.canary_bl = torch.tensor([canary_token_ids], device=device)

    def publish(self, policy: Policy, version: WeightVersion) -> Publication | None:
        """The file appears under its name only when it is complete; files older than the kept versions go."""
        everything_but_first = torch.ones_like(self.canary_bl, dtype=torch.bool)
        everything_but_first[:, 0] = False
        # Temperature 1: engines report the log-probabilities of a prompt without one.
        logprobs = score(policy, self.canary_bl, everything_but_first, temperature=1.0)
        weights = full_weights(policy, self.dtype, keep=self.rank == 0)
        if self.rank != 0:
            return None
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"{version}.safetensors"
        unfinished = path.with_suffix(".unfinished")
        save_file(weights, unfinished, metadata={"format": "pt"})
        os.replace(unfinished, path)
        for outdated in sorted(self.folder.glob("*.safetensors"), key=lambda file: WeightVersion.parse(file.stem))[
            :-KEPT_VERSIONS
        ]:
            outdated.unlink()
        canary = Canary(self.canary_ids, logprobs.tolist())
        return Publication(version, str(path), weights_checksum(path), path.stat().st_size, canary)
