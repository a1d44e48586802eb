"""Every room beside its physical limit, in one run and one table: each ratio is the share of the limit that is reached.

| room     | its limit                                   | the rest goes to (notes)                             |
|----------|---------------------------------------------|------------------------------------------------------|
| rollout  | the same requests sent to the bare engine   | processor time of both sides                         |
| learner  | a large matrix product of the same threads  | tokens that a step computes beside its matrices      |
| rows     | one copy of as many bytes                   |                                                      |
| weights  | one thread's copy of the same bytes         | the longest stages of a delivery                     |
| step     | the processor time in it, on all cores      | a step's stages, which wait for each other           |

Retrieval beside the bare library is `medr3 bench retrieval`: an index of a size at which that means something takes minutes.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench import learner, rollout, trajectories, weights
from bench.end_to_end import WITH, WITHOUT, trained
from bench.harness import Result, figure, interleaved, ratio, result
from bench.training import rows

OF_ENGINE, OF_MATMUL, OF_MEMCPY, OF_COPY, OF_STEP = 0.75, 0.5, 0.5, 1 / 3, 0.9
# 26 million parameters: 104 MB in fp32, beyond the caches, and delivered in a moment.
DELIVERED = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
STEPS = 8  # of each phase


def run(rounds: int = 5) -> Result:
    """About five minutes, in `rounds` rounds; Ray comes last."""
    torch.set_num_threads(1)
    parts = [_rows(), _learner(), _rollout(rounds), _weights(rounds), _step()]
    figures, ratios, notes = (list(chain.from_iterable(column)) for column in zip(*parts, strict=True))
    return result(figures, ratios, notes)


def _rows() -> learner.Part:
    found = trajectories.run()
    share = next(row["value"] for row in found["ratios"] if row["name"] == "Arrow rows over memcpy")
    return [], [ratio("rows: Arrow into the learner's arrays, of a plain copy", share, OF_MEMCPY)], []


def _learner() -> learner.Part:
    figures, (share,), _ = learner.utilisation()
    return figures, [ratio("learner: a step's arithmetic, of a matrix product's", share["value"], OF_MATMUL)], []


def _rollout(rounds: int) -> learner.Part:
    with rollout.rolling_out(replace(rollout.SMALL, repetitions=rounds)) as rolling:
        figures, (share,) = rolling.over_bare()
    return figures, [ratio("rollout: episodes, of the bare engine's tokens/s", share["value"], OF_ENGINE)], []


def _weights(rounds: int) -> learner.Part:
    with weights.delivery(DELIVERED) as course:
        delivered, copied = interleaved({"delivery": course.deliver, "copy": course.copy}, rounds).values()
        by_stage = course.stages(rounds)
        size = course.nbytes
    figures = [figure(f"weights: {size / 1e6:.0f} MB delivered and proved", delivered.median * 1e3, "ms")]
    longest = sorted(by_stage.items(), key=lambda stage: -stage[1].median)
    named = ", ".join(f"{name} {each.median * 1e3:.0f}" for name, each in longest if "total" not in name)
    share = copied.median / delivered.median
    return (
        figures,
        [ratio("weights: delivered and proved, of a plain copy", share, OF_COPY)],
        [f"weights, ms by stage: {named}"],
    )


def _step() -> learner.Part:
    """How much of the cores' time a synchronous step works; the rest waits for somebody."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        measured = trained(folder, None, STEPS)
        by_phase = {name: [row for row in rows(folder) if row["phase"] == phase] for name, phase in PHASES.items()}
    figures, ratios, notes = [], [], []
    for name, each in measured.items():
        figures.append(figure(f"step {name}", each.seconds, "s"))
        ratios.append(ratio(f"step {name}: processor time, of what others left of the cores", 1 - each.idle, OF_STEP))
        notes.append(f"step {name}, s by stage: {stages(by_phase[name][-STEPS:])}")
    return figures, ratios, notes


PHASES = {WITHOUT: "reasoning", WITH: "joint"}


def stages(measured: list[dict[str, Any]]) -> str:
    """Means over steps.

    Example:
        >>> stages([{"time/step": 2.0, "time/rollout": 1.2, "time/learn": 0.5, "time/sync": 0.1}])
        'rollout 1.20, learn 0.50, sync 0.10, writing and deciding 0.20'
    """
    names = ("rollout", "learn", "sync")
    means = {name: sum(row[f"time/{name}"] for row in measured) / len(measured) for name in names}
    whole = sum(row["time/step"] for row in measured) / len(measured)
    return ", ".join(
        f"{name} {seconds:.2f}" for name, seconds in (means | {"writing and deciding": whole - sum(means.values())}).items()
    )
