"""Cold start from files: the learner's own trainer imitates the episodes that `medr3 data coldstart` wrote.

::

    *.parquet ─▶ shuffled rows, so many a step ─▶ PolicyTrainer, algorithm sft ─▶ Hugging Face folder, cold_start.json
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from learner.assembly import assemble
from learner.batch import COLUMNS, read_batch
from learner.config import AlgorithmConfig, LearnerConfig
from learner.export import export_model
from medr3.errors import UserError
from medr3.run.replay import one_rank
from tasks.config import ColdStartConfig
from trajectories.schema import WeightVersion

REPORT = "cold_start.json"
TOLD_EVERY = 20  # steps
HELD_OUT = 0.05  # of the rows: the loss on what is imitated falls for every model, that on these only where it learns
MOST_HELD_OUT = 256


def imitate(model: Path, settings: ColdStartConfig, config: LearnerConfig, seed: int, folder: Path) -> Generator[str]:
    """Yields progress lines; leaves the model in `folder`, complete or not at all."""
    trained, held_out = _split(read_episodes([Path(path) for path in settings.episodes]), seed)
    torch.set_num_threads(config.cpu_threads)
    device = torch.device("cuda" if config.gpus_per_worker > 0 else "cpu")
    steps = math.ceil(trained.num_rows / settings.batch_size) * settings.epochs
    started, history = time.monotonic(), []
    with one_rank(device):
        trainer = assemble(model, sft_settings(config), device)

        def loss_on(table: pa.Table, rate: float, step: int) -> float:
            metrics = trainer.step(read_batch([table]), step=step, current=WeightVersion(0, 0), learning_rate=rate)
            return metrics["loss"]

        # A step at learning rate 0 changes nothing: the trainer's own loss, on rows that it never learns from.
        before = loss_on(held_out, 0.0, 0)
        yield f"cold start: {trained.num_rows:,} rows, {steps:,} steps; loss {before:.3f} on {held_out.num_rows:,} that are held out"
        for step, rows in enumerate(_batches(trained, settings, seed), start=1):
            loss = loss_on(rows, rate_at(step, steps, settings), step)
            history.append(loss)
            if step % TOLD_EVERY == 0:
                yield f"cold start: step {step:,} of {steps:,}, {time.monotonic() - started:.0f} s, loss {loss:.3f}"
        after = loss_on(held_out, 0.0, steps + 1)
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        export_model(trainer.policy, model, unfinished, torch.bfloat16 if config.dtype == "bfloat16" else torch.float32)
    report = {
        "rows": trained.num_rows, "steps": steps, "seconds": time.monotonic() - started, "held_out_loss_before": before,
        "held_out_loss": after, "losses": history,
    }  # fmt: skip
    (unfinished / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    unfinished.rename(folder)
    yield f"cold start: loss {before:.3f} → {after:.3f} on rows that were held out"


def read_episodes(paths: list[Path]) -> pa.Table:
    """The columns that a learner needs, of Parquet files or folders of them."""
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"cold_start.episodes: {paths[0]} holds no Parquet file: medr3 data coldstart makes them")
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, columns=list(COLUMNS)))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(f"cold_start.episodes: {file}: no episodes: {' '.join(str(error).split())[:200]}") from None
    table = pa.concat_tables(tables)
    if table.num_rows < 2:  # one to learn from, one held out
        raise UserError(f"cold_start.episodes: {paths[0]} holds {table.num_rows} episodes: make more with medr3 data coldstart")
    return table


def sft_settings(config: LearnerConfig) -> LearnerConfig:
    """The run's machine and optimiser, with imitation for its algorithm."""
    machine = {name: getattr(config, name) for name in LearnerConfig.model_fields if name not in AlgorithmConfig.model_fields}
    return LearnerConfig.model_validate(machine | {"algorithm": "sft", "minibatches": 1})


def rate_at(step: int, steps: int, settings: ColdStartConfig) -> float:
    """Linear warm-up, then a half cosine to zero (R3-RAG).

    Example:
        >>> settings = ColdStartConfig(learning_rate=1e-5)
        >>> [round(rate_at(step, 100, settings) * 1e5, 3) for step in (1, 10, 55, 100)]
        [0.1, 1.0, 0.5, 0.0]
    """
    warm_up = max(1, round(steps * settings.warm_up_share))
    if step <= warm_up:
        return settings.learning_rate * step / warm_up
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _split(table: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    """Rows to learn from and rows to judge by, of different groups wherever there are several."""
    groups = sorted(set(table["group_id"].to_pylist()))
    random.Random(f"{seed}/held out").shuffle(groups)
    count = min(MOST_HELD_OUT, max(1, round(len(groups) * HELD_OUT)))
    if len(groups) == 1:
        return table.slice(1), table.slice(0, 1)
    held = set(groups[:count])
    mask = pa.array([group in held for group in table["group_id"].to_pylist()])
    return table.filter(pa.compute.invert(mask)), table.filter(mask)


def _batches(table: pa.Table, settings: ColdStartConfig, seed: int) -> Iterator[pa.Table]:
    for epoch in range(settings.epochs):
        order = list(range(table.num_rows))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), settings.batch_size):
            yield table.take(order[start : start + settings.batch_size])
