"""How fast the learner is, and in how little memory: five ratios, each against its goal. One thread a process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.flops import matmul_seconds, step_flops
from bench.harness import Children, Result, figure, interleaved, peak_growth, rate, ratio, result, timed
from bench.learner_children import DISTRIBUTED, LARGE, all_logits_step, large_step, train_as_rank
from bench.padding import padded
from bench.peers.trl_process import TrlPeer
from bench.workload import DEMO, MEDIUM, batch_of, demo_episodes, prepared, random_model, search_episodes, settings, step
from learner.batch import EpisodeBatch
from learner.model import Policy, make_policy, score
from learner.packing import MicroBatch, flatten, plan_micro_batches
from learner.trainer import PolicyTrainer

PACKED_OVER_PADDED, OVER_TRL, UTILISATION, TWO_WORKERS, PEAK_MEMORY = 1.8, 2.0, 0.5, 1.6, 0.6
SAME_LOGPROBS = 1e-4  # two layouts differ by the rounding of other matrix shapes
SAME_GRADIENT = 1e-3  # relative: norms that two code bases computed
MATMUL = 2048  # a larger product is no faster
Part = tuple[list[Result], list[Result], list[str]]  # figures, ratios, notes


def run(peer: Path | None = None, short: bool = False) -> Result:
    """All five; that against TRL only where `peer` names an environment that has it. `short` leaves out two workers and memory."""
    torch.set_num_threads(1)
    left_out: Part = ([], [], ["TRL was left out: name its environment with --peer"])
    trl = left_out if peer is None else over_trl(peer)
    parts = [packed_over_padded(), trl, utilisation(), *([] if short else [two_workers(), peak_memory()])]
    figures, ratios, notes = (list(chain.from_iterable(column)) for column in zip(*parts, strict=True))
    return result(figures, ratios, notes)


def packed_over_padded() -> Part:
    """Forward and backward over a step of each phase of the demo; what is not padding counts as tokens."""
    config, steps = settings(), demo_episodes()
    policy = make_policy(random_model(DEMO), config)
    batches = [batch_of(step, DEMO.vocab_size) for step in steps]
    layouts: dict[str, Callable[[EpisodeBatch], list[MicroBatch]]] = {
        "packed": lambda batch: packed(batch, config.microbatch_tokens),
        "padded": lambda batch: padded(batch, config.microbatch_tokens),
    }
    for batch in batches:
        packed_t, padded_t = (_logprobs(policy, batch, make(batch)) for make in layouts.values())
        torch.testing.assert_close(packed_t, padded_t, rtol=0, atol=SAME_LOGPROBS)

    def all_steps(make: Callable[[EpisodeBatch], list[MicroBatch]]) -> Callable[[], None]:
        def once() -> None:
            for batch in batches:
                _forward_backward(policy, make(batch))

        return once

    seconds = interleaved({name: timed(all_steps(make)) for name, make in layouts.items()})
    tokens = sum(len(batch.token_ids_t) for batch in batches)
    bound = sum(len(batch) * int(batch.lengths.max()) for batch in batches) / tokens
    figures = [rate(f"{name}, the demo's model and lengths", tokens, spread, "tokens/s") for name, spread in seconds.items()]
    figures.append(figure("upper bound: tokens with padding over tokens", bound, "x"))
    gain = seconds["padded"].median / seconds["packed"].median
    return figures, [ratio("packed over padded", gain, PACKED_OVER_PADDED)], []


def over_trl(peer: Path) -> Part:
    """Log-probabilities, loss, backward, clipping and AdamW on the completions of one step of the demo's last phase."""
    config, episodes = settings(), demo_episodes()[-1]
    policy, batch = prepared(DEMO, episodes, config)
    trainer = PolicyTrainer(policy, config)
    with tempfile.TemporaryDirectory() as folder, TrlPeer(peer, Path(folder), policy, batch, config) as trl:
        norm = step(trainer, batch)["grad_norm"]
        if abs(norm - trl.grad_norm) > SAME_GRADIENT * norm:
            raise RuntimeError(
                f"TRL's gradient has norm {trl.grad_norm}, the learner's {norm}: the two do not do the same work"
            )
        seconds = interleaved({"learner": timed(lambda: step(trainer, batch)), "TRL": trl.step})
    figures = [
        rate(f"{name}, one step of {len(batch)} episodes", len(batch.token_ids_t), spread, "tokens/s")
        for name, spread in seconds.items()
    ]
    gain = seconds["TRL"].median / seconds["learner"].median
    note = f"TRL: {trl.version}, {trl.rows} rows a pass, the fastest; gradient norms {norm:.5f} and {trl.grad_norm:.5f}"
    return figures, [ratio("learner over TRL's learner step", gain, OVER_TRL)], [note]


def utilisation() -> Part:
    """A whole step of the 100M model on 2k tokens, optimiser included, beside the peak of a matrix product."""
    config, episodes = settings(), search_episodes([512, 448, 416, 384, 288, 256, 256, 256])
    policy, batch = prepared(MEDIUM, episodes, config)
    trainer = PolicyTrainer(policy, config)
    variants = {
        "step": timed(lambda: step(trainer, batch)),
        "matmul": lambda: matmul_seconds(MATMUL, torch.float32, torch.device("cpu")),
    }
    seconds = interleaved(variants, repetitions=3, warm_up=1)
    peak = 2.0 * MATMUL**3 / seconds["matmul"].median
    achieved = step_flops(policy.causal_lm, batch) / seconds["step"].median
    figures = [
        rate("a 100M model, one step", len(batch.token_ids_t), seconds["step"], "tokens/s"),
        figure("arithmetic of that step", achieved / 1e9, "GFLOP/s"),
        figure(f"matrix product of {MATMUL} x {MATMUL}", peak / 1e9, "GFLOP/s"),
    ]
    return figures, [ratio("share of the machine's arithmetic", achieved / peak, UTILISATION)], []


def two_workers() -> Part:
    """Real FSDP ranks over gloo; both sizes of the group wait for their turn without using a core."""
    with tempfile.TemporaryDirectory() as folder:
        groups = {ranks: Children(train_as_rank, ranks, Path(folder) / str(ranks), count=ranks) for ranks in (1, 2)}
        try:
            seconds = interleaved({str(ranks): group.step for ranks, group in groups.items()}, repetitions=3, warm_up=1)
        finally:
            for group in groups.values():
                group.close()
    tokens = sum(abs(part) for segments in DISTRIBUTED for part in segments)
    figures = [
        rate(f"workers of one thread: {ranks}, a 31M model", tokens, took, "tokens/s") for ranks, took in seconds.items()
    ]
    return figures, [ratio("two workers over one", seconds["1"].median / seconds["2"].median, TWO_WORKERS)], []


def peak_memory() -> Part:
    """A whole step at a large vocabulary against one that holds all logits, each in a fresh process."""
    naive, ours = peak_growth(all_logits_step), peak_growth(large_step)
    figures = [
        figure("peak of a step that holds all logits", naive / 2**20, "MiB"),
        figure("peak of the learner's step", ours / 2**20, "MiB"),
    ]
    name = f"peak memory at a vocabulary of {LARGE.vocab_size:,}"
    return figures, [ratio(name, ours / naive, PEAK_MEMORY, at_most=True)], []


def packed(batch: EpisodeBatch, budget: int) -> list[MicroBatch]:
    """The learner's own plan for one rank."""
    plan = plan_micro_batches(batch.lengths, np.arange(len(batch)), ranks=1, budget=budget)
    return [flatten(batch, part) for part in plan[0]]


def _logprobs(policy: Policy, batch: EpisodeBatch, micros: list[MicroBatch]) -> Tensor:
    logprobs_t = torch.zeros(len(batch.token_ids_t))
    for micro in micros:
        logprobs_t[micro.flat_n] = score(policy, micro)
    return logprobs_t


def _forward_backward(policy: Policy, micros: list[MicroBatch]) -> None:
    for micro in micros:
        policy(micro)[0].mean().backward()
    policy.zero_grad()
