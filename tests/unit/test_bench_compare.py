"""Results side by side: which way is better, what a budget allows, and what a file must be."""

from __future__ import annotations

import doctest
import json
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.compare import ResultRefused, compare, comparison_table, read_budgets, read_results
from bench.harness import figure, ratio, result
from bench.suite import NAMES, SHORT, module_of, run_all
from medr3.cli import app
from medr3.cli_bench import BENCHMARKS, WITH_PEER


def measured(**values: tuple[float, bool]) -> dict[str, Any]:
    rows = [ratio(name, value, 1.0, at_most=at_most) for name, (value, at_most) in values.items()]
    return {**result([figure("some", 1.0, "s")], rows, threads=1), "benchmark": "rollout", "short": False}


def written(path: Path, found: dict[str, Any], before: str = "") -> Path:
    path.write_text(f"{before}{json.dumps(found)}\n")
    return path


@pytest.mark.parametrize(
    ("budget", "value", "at_most", "failed"),
    [
        (1.0, 0.91, False, False),
        (1.0, 0.89, False, True),
        (1.0, 1.09, True, False),
        (1.0, 1.13, True, True),
        (1.0, 9.0, False, False),
    ],
)
def test_beyond_a_tenth_worse_than_the_budget_fails_and_better_never_does(
    budget: float, value: float, at_most: bool, failed: bool
) -> None:
    new = {"rollout": measured(gain=(value, at_most))}
    (line,) = compare({}, new, {"rollout": {"gain": budget}})
    assert (line.failed, line.first, line.factor) == (failed, None, None)


def test_the_factor_is_above_one_where_the_second_is_better_whichever_way_that_is() -> None:
    old, new = ({"rollout": measured(gain=(gain, False), cost=(cost, True))} for gain, cost in ((2.0, 4.0), (3.0, 2.0)))
    lines = {line.name: line for line in compare(old, new, {})}
    assert lines["rollout: gain"].factor == 1.5
    assert lines["rollout: cost"].factor == 2.0
    assert not any(line.failed for line in lines.values())


def test_a_budget_of_a_ratio_that_is_gone_is_refused_but_short_settings_may_leave_it_out() -> None:
    new = {"rollout": measured(gain=(2.0, False))}
    with pytest.raises(ResultRefused, match="budget of rollout: no ratio gone was measured"):
        compare({}, new, {"rollout": {"gone": 1.0}})
    new["rollout"]["short"] = True
    assert len(compare({}, new, {"rollout": {"gone": 1.0}})) == 1


def test_the_command_exits_with_1_beyond_the_budget_and_shows_which_machine_differs(tmp_path: Path) -> None:
    other = measured(gain=(2.0, False))
    other["machine"] |= {"cpu": "another"}
    a = written(tmp_path / "a.json", other)
    b = written(tmp_path / "b.json", measured(gain=(1.7, False)), before="a library said something\n")
    budget = tmp_path / "budget.yaml"
    for allowed, code in ((1.8, 0), (2.0, 1)):
        budget.write_text(f"rollout: {{gain: {allowed}}}")
        done = CliRunner().invoke(app, ["bench", "compare", str(a), str(b), "--budget", str(budget)])
        assert done.exit_code == code, done.output
        assert ("WORSE THAN ITS BUDGET" in done.output) is bool(code)
        assert "DIFFERENT" in next(line for line in done.output.splitlines() if line.strip().startswith("cpu"))
    shown = CliRunner().invoke(app, ["bench", "compare", str(a), str(b), "--budget", str(budget), "--json"])
    assert json.loads(shown.output.splitlines()[-1])[0]["factor"] == pytest.approx(0.85)


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"benchmark": "x"}', '{"benchmarks": []}', "\x00"])
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    done = CliRunner().invoke(app, ["bench", "compare", str(path), str(path)])
    assert str(done.exception).startswith(f"{path}: ")
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("content", ["- a", "rollout: 3", "rollout: {gain: much}", "{", ""])
def test_what_is_no_budget_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(content)
    with pytest.raises(ResultRefused, match="is no budget") as refused:
        read_budgets(path)
    assert "\n" not in str(refused.value)


def test_the_shipped_budget_names_benchmarks_and_a_result_of_several_is_read(tmp_path: Path) -> None:
    assert read_budgets().keys() <= BENCHMARKS.keys()
    found = {"rollout": measured(gain=(2.0, False))}
    both = read_results(written(tmp_path / "all.json", {"benchmarks": found}))
    assert comparison_table(both, both, compare(both, both, {})).count("gain") == 1


def test_ratios_come_first_and_the_machine_says_what_was_measured() -> None:
    found = measured(gain=(2.0, False))
    assert next(iter(found)) == "ratios"
    assert {"cpu", "cores", "memory_gib", "torch", "vllm", "ray", "python", "commit"} <= found["machine"].keys()
    assert found["machine"]["ray"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_takes_the_arguments_that_make_it_short_and_its_peer(name: str) -> None:
    accepted = signature(import_module(module_of(name)).run).parameters
    assert SHORT.get(name, {}).keys() <= accepted.keys()
    assert ("peer" in accepted) == (name in WITH_PEER)
    assert set(NAMES) <= BENCHMARKS.keys()


@pytest.mark.parametrize("module", ["compare", "growth", "harness", "limits", "processor_time", "startup", "time_to_reward"])
def test_examples(module: str) -> None:
    found = doctest.testmod(import_module(f"bench.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def test_a_benchmark_that_fails_is_named_and_the_others_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert run_all(["no-such", "judge"], out, short=True, peer=None) == 1
    found = read_results(out)["judge"]
    assert (found["benchmark"], found["short"], next(iter(found))) == ("judge", True, "ratios")
    said = capsys.readouterr()
    assert "failed: no-such" in said.err
    assert "overhead, median" in said.out
