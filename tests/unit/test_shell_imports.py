"""The command line answers at once: what it and every settings model load is light."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = [
    "medr3.cli", "medr3.config", "medr3.errors", "medr3.validation", "medr3.observe.config",
    *(f"{path.parent.name}.config" for path in sorted(ROOT.glob("*/config.py")) if path.parent.name != "medr3"),
    *(f"curriculum.{path.stem}" for path in sorted((ROOT / "curriculum").glob("*.py")) if path.stem != "__init__"),
]  # fmt: skip
HEAVY = ("torch", "ray", "vllm", "transformers", "faiss", "wandb", "pandas", "scipy")
HELP_S = 1.0


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help_names_every_command_within_a_second() -> None:
    seconds = []
    for _ in range(3):  # the best of three: another program may have the cores for a moment
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "medr3.cli", "--help"], capture_output=True, text=True, cwd=ROOT, check=False
        )
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    for command in ("train", "submit", "status", "stop", "report", "audit"):
        assert f"  {command} " in done.stdout
    assert min(seconds) < HELP_S
