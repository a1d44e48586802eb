"""All benchmarks one after another, each in a process of its own: what one leaves in a process would be the next one's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import Result, machine, table

# What `make bench` runs, in this order: cheap ones first, so that a mistake shows early. Curves and simulation have no seconds in them.
NAMES = (
    "ledger", "trajectories", "rewards", "judge", "weights", "learner", "rollout", "retrieval", "growth", "startup", "end-to-end",
    "limits",
)  # fmt: skip
# Arguments of `run` that make it short.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "curves": {"count": 100, "phases": 30},
    "end-to-end": {"steps": 6, "rounds": 1, "peer_steps": 1},
    "growth": {"short": True},
    "judge": {"requests": 300, "warm_up": 64},
    "learner": {"short": True},
    "limits": {"rounds": 2},
    "retrieval": {"documents": 20_000, "repetitions": 2},
    "rollout": {"short": True},
    "startup": {"repetitions": 1},
    "weights": {"repetitions": 3},
}


def module_of(name: str) -> str:
    return f"bench.{name.replace('-', '_')}"


def run_all(names: Sequence[str], out: Path, *, short: bool, peer: Path | None) -> int:
    """Writes what there is after every benchmark. 1 where one failed: the others are still measured and written."""
    results: dict[str, Result] = {}
    failed = []
    for name in names:
        began = time.monotonic()
        measured = _measured(name, short, peer if name in ("learner", "end-to-end") else None)
        if measured is None:
            failed.append(name)
            continue
        results[name] = measured
        out.write_text(json.dumps({"benchmarks": results, "machine": machine(threads=1)}) + "\n", encoding="utf-8")
        print(f"{name}, {time.monotonic() - began:.0f} s\n{table(measured)}\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}: each says why above", file=sys.stderr)
    return 1 if failed else 0


def _measured(name: str, short: bool, peer: Path | None) -> Result | None:
    """Its errors stay visible; of its output, the last line is the result."""
    command = [sys.executable, "-m", "medr3.cli", "bench", name, "--json", *(["--short"] if short else [])]
    command += ["--peer", str(peer)] if peer is not None else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    measured: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return measured
