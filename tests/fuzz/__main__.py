"""`python -m tests.fuzz`: so many cases over all targets, a table, and a file for every way to fail."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.fuzz.running import Tally, in_child, keep, slug
from tests.fuzz.target import Target
from tests.fuzz.targets import all_targets

CHUNK = 50_000  # cases of one process: what a reader leaks stays small, and starting it costs little beside them


def main() -> int:
    asked = _asked()
    chosen = [each for each in all_targets() if not asked.only or any(slug(each.name).startswith(word) for word in asked.only)]
    shares = sum(target.share for target in chosen)
    with tempfile.TemporaryDirectory(prefix="medr3-fuzz-") as folder:
        tempfile.tempdir = folder  # what the children leave goes with it
        known = _known(asked.state, asked.seed, asked.cases)
        tallies: list[Tally] = []
        for target in chosen:
            cases = math.ceil(asked.cases * target.share / shares)
            tallies.append(known.get(target.name) or _whole(target, asked.seed, cases, Path(folder)))
            known[target.name] = tallies[-1]
            _keep_known(asked.state, asked.seed, asked.cases, list(known.values()))
    print(table(tallies))
    if asked.record:
        asked.record.write_text(record(tallies, asked.cases, asked.seed), encoding="utf-8")
    return 1 if any(tally.failures for tally in tallies) else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz every reader and parser of outside bytes and text."
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="over all targets, by their shares")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same cases")
    parser.add_argument("--only", nargs="*", help="beginnings of names of targets, such as retrieval-http")
    parser.add_argument("--state", type=Path, help="a file of what was done: targets that did not fail are not run again")
    parser.add_argument("--record", type=Path, help="a Markdown file for the table")
    return parser.parse_args()


def _known(state: Path | None, seed: int, cases: int) -> dict[str, Tally]:
    """The targets that an earlier, interrupted run with the same cases is through with."""
    if state is None or not state.exists():
        return {}
    found = json.loads(state.read_text())
    if (found["seed"], found["cases"]) != (seed, cases):
        return {}
    tallies = [Tally(**each) for each in found["tallies"]]
    return {tally.target: tally for tally in tallies if not tally.failures}


def _keep_known(state: Path | None, seed: int, cases: int, tallies: list[Tally]) -> None:
    if state is not None:
        state.write_text(json.dumps({"seed": seed, "cases": cases, "tallies": [asdict(tally) for tally in tallies]}))


def _whole(target: Target, seed: int, cases: int, folder: Path) -> Tally:
    """All of a target's cases, a process for each chunk."""
    whole = Tally(target.name)
    for start in range(0, cases, CHUNK):
        part = in_child(target, seed, start, min(CHUNK, cases - start), folder)
        whole.add(part)
    told = f"{whole.cases:,} cases, {whole.refused:,} refused, slowest {whole.slowest_s:.2f} s"
    print(f"{target.name}: {told}", flush=True)
    for failure in whole.failures:
        print(
            f"  FAILED {failure.times} times, first case {failure.number}: {failure.signature}: {failure.said}\n    {keep(failure)}",
            flush=True,
        )
    return whole


def table(tallies: list[Tally]) -> str:
    lines = ["| target | cases | refused | cases/s | slowest | failures |", "|---|---:|---:|---:|---:|---:|"]
    for tally in tallies:
        speed = tally.cases / tally.cpu_s if tally.cpu_s else 0
        lines.append(
            f"| {tally.target} | {tally.cases:,} | {tally.refused / max(1, tally.cases):.0%} | {speed:,.0f} | {tally.slowest_s:.2f} s"
            f" | {len(tally.failures)} |"
        )
    cases, failures = sum(tally.cases for tally in tallies), sum(len(tally.failures) for tally in tallies)
    return "\n".join(
        [*lines, f"| all | {cases:,} | {sum(tally.refused for tally in tallies) / max(1, cases):.0%} | | | {failures} |"]
    )


RECORD = """# Fuzz

Made by `{command}` on {day}, Python {python}: {cases:,} cases over {targets} readers and parsers in {minutes:.0f} minutes
of processor time, {failures} failures. A case is a valid sample with parts of it changed: bytes, values, types, sizes, names, halves of
characters, numbers out of range, nesting. It must be read, or refused with the reader's own error in one line, within two
seconds of processor time; a process that dies, an error of another type and a broken promise of what was read are failures.
*Refused* is the share that was not read; *cases/s* is per second of processor time, on a machine that others used as well.
A target that fails is mended and run again with the same cases; the others are not, where `--state` remembers them.

{table}

What failed once is kept in `tests/fuzz/regressions/`, and every run of the unit tests tries it again (`tests/unit/test_fuzz.py`).
"""


def record(tallies: list[Tally], asked: int, seed: int) -> str:
    cases, failures = sum(tally.cases for tally in tallies), sum(len(tally.failures) for tally in tallies)
    return RECORD.format(
        command=f"make fuzz SEED={seed} CASES={asked}", day=datetime.now(UTC).date(), python=platform.python_version(), cases=cases,
        targets=len(tallies), minutes=sum(tally.cpu_s for tally in tallies) / 60, failures=failures, table=table(tallies),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
