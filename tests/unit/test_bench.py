"""The benchmarks measure what they say: turns, memory, operations, and that both sides compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from bench import gpu
from bench.flops import step_flops
from bench.harness import Children, figure, interleaved, peak_growth, rate, ratio, result, table
from bench.learner import packed
from bench.padding import padded
from bench.workload import batch_of, demo_episodes, prepared, random_model, search_episodes, settings, shape, step
from learner.model import make_policy, score
from learner.trainer import PolicyTrainer
from medr3.cli import app
from tests.bench_children import MIB, allocate, rank_seconds

TINY = shape(hidden=32, layers=2, heads=2, kv_heads=1, ffn=64, vocabulary=96)


def test_variants_take_turns_and_warm_up_does_not_count() -> None:
    seconds, calls = iter([9.0, 9.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0]), []

    def variant(name: str) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return next(seconds)

        return run

    found = interleaved({name: variant(name) for name in "ab"}, repetitions=3, warm_up=1)
    assert calls == list("abababab")
    assert (found["a"], found["b"]) == ((2.0, 1.0, 3.0), (20.0, 10.0, 30.0))
    assert rate("r", 60, found["b"], "x/s") == {"name": "r", "value": 3.0, "unit": "x/s", "lowest": 2.0, "highest": 6.0}


@pytest.mark.parametrize(("value", "at_most", "reached"), [(2.0, False, True), (1.9, False, False), (2.1, True, False)])
def test_a_ratio_says_whether_it_reached_its_goal(value: float, at_most: bool, reached: bool) -> None:
    measured = result([figure("some", 1.0, "MiB")], [ratio("gain", value, 2.0, at_most=at_most)], ["a note"])
    assert measured["ratios"][0]["reached"] is reached
    gain = next(line for line in table(measured).splitlines() if "gain" in line)
    assert gain.endswith("reached" if reached else "MISSED")


def test_the_peak_of_a_step_is_what_it_adds_though_it_is_freed_again() -> None:
    assert peak_growth(allocate, 128) / MIB == pytest.approx(128, rel=0.05)


def test_a_step_of_several_children_takes_as_long_as_the_slowest() -> None:
    children = Children(rank_seconds, [1.0, 5.0], count=2)
    try:
        assert children.step() == 5.0
    finally:
        children.close()


def test_packed_and_padded_rows_have_the_same_log_probabilities() -> None:
    policy = make_policy(random_model(TINY), settings())
    batch = batch_of(demo_episodes()[1][:24], TINY.vocab_size)
    found = []
    for micros in (packed(batch, budget=512), padded(batch, budget=512)):
        assert len(micros) > 1
        logprobs_t = torch.full((len(batch.token_ids_t),), torch.nan)
        for micro in micros:
            logprobs_t[micro.flat_n] = score(policy, micro)
        assert (~logprobs_t.isnan()).numpy().tolist() == batch.loss_mask_t.tolist()
        found.append(logprobs_t)
    torch.testing.assert_close(*found, equal_nan=True, rtol=0, atol=1e-5)


def test_the_demo_s_lengths_are_a_step_of_each_phase() -> None:
    steps = demo_episodes()
    assert [len(step) for step in steps] == [256, 256, 256]
    lengths = [batch_of(step, 10).lengths for step in steps]
    assert all(50 < part.mean() < 100 and part.max() < 150 for part in lengths)
    assert all(segments[0] < 0 < segments[1] for step in steps for segments in step)


def test_operations_are_those_that_torch_counts() -> None:
    """Forward, of which a step takes three times; attention and the entropies are in one count and not in the other."""
    batch = batch_of(search_episodes([16, 24, 40]), TINY.vocab_size)
    policy = make_policy(random_model(TINY), settings())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for micro in packed(batch, budget=8192):
            policy(micro)
    entropies = 2 * int(batch.loss_mask_t.sum()) * TINY.vocab_size
    squares = float((batch.lengths.astype(float) ** 2).sum())
    attention = 6 * TINY.num_hidden_layers * TINY.hidden_size * squares
    assert 3 * (counter.get_total_flops() - entropies) == pytest.approx(step_flops(policy.causal_lm, batch) - attention)


def test_a_prepared_step_trains_without_mismatch() -> None:
    policy, batch = prepared(TINY, search_episodes([16, 24, 40, 33] * 4), settings())
    measured = step(PolicyTrainer(policy, settings()), batch)
    assert measured["episodes_trained"] == 16
    assert measured["mismatch_mean"] < 1e-5
    assert measured["grad_norm"] > 0
    assert np.array_equal(batch.lengths, [16, 24, 40, 33] * 4)


def test_the_gpu_script_runs_on_a_cpu_and_its_equalities_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smoke"]) == 0
    said = capsys.readouterr().out
    assert said.count("reached") == 4
    assert "share of the device's arithmetic" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_script_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learner", "--peer", "nowhere"], "nowhere: is no Python environment: make one with bench/peers/trl.sh nowhere"),
        (["all", "--only", "lerner"], "--only: no such benchmark: lerner; there are "),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert words in str(done.exception)
