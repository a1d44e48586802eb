"""To TensorBoard: RUN/tensorboard, one scalar per metric and step. `tensorboard --logdir runs` compares runs."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from medr3.observe.registry import lookup

FOLDER = "tensorboard"
_FLUSH_S = 30  # a step is seconds to minutes


class TensorBoardExport:
    """`resume_step` is the manifest's step: steps after it are hidden, because they are made again."""

    def __init__(self, run_folder: Path, resume_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        purged = None if resume_step is None else resume_step + 1
        # Its files are named by the second: one that is resumed within it would write over the other.
        suffix = f".{uuid.uuid4().hex[:8]}"
        self._writer = SummaryWriter(str(run_folder / FOLDER), purge_step=purged, flush_secs=_FLUSH_S, filename_suffix=suffix)
        self._phase = ""

    def log(
        self, step: int, phase: str, metrics: Mapping[str, float], observed: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        for name, values in (observed or {}).items():
            if values:
                buckets = lookup(name).metric.buckets
                edges = [0.0, *buckets, max(buckets[-1], *values) + 1]
                self._writer.add_histogram(name, list(values), step, bins=edges)
        if phase != self._phase:
            self._writer.add_text("phase", phase, step)
            self._phase = phase

    def close(self) -> None:
        self._writer.close()
