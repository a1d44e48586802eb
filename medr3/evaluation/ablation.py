"""What is each part of a training worth? The same run with one thing changed at a time, at equal cost.

::

    for each seed:   first arm ─ index, cold start ─▶ every other arm
                         └────── model tokens spent ─▶ run.token_budget of every other arm

Every arm is a run of its own in a folder of its own, made by `medr3 train`: it is resumed where it was interrupted, and one that
has ended is not run again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medr3.errors import UserError
from medr3.run_shapes import read_summary
from medr3.validation import describe_validation
from security.yaml_files import read_yaml

SHARED = ("index", "cold_start", "config.json")  # config.json says which settings the other two were made with


class Arm(BaseModel):
    """One variant of a run: what is changed, as overrides of the configuration."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    about: str = ""
    overrides: list[str] = []

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")


class Arms(BaseModel):
    """The arms of an ablation; the first is what the others are compared with."""

    model_config = ConfigDict(extra="forbid")

    arms: list[Arm] = Field(min_length=2)
    until_spent: list[str] = Field(
        default=[],
        description="overrides of every arm but the first, with which it goes on until the tokens of the first are used",
    )


def read_arms(config: Path, arms: Path | None, only: Sequence[str]) -> list[Arm]:
    """The arms of a configuration, by default from ablations/ beside it; `only` chooses among them, and the first always stays."""
    path = arms or config.parent / "ablations" / config.name
    try:
        plan = Arms.model_validate(read_yaml(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a file of arms with --arms") from None
    except ValidationError as error:
        said = " ".join(describe_validation(error, Arms)[0].split())
        raise UserError(f"{path}: not a list of arms: {said}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValidationErrors and what is no UTF-8 are ValueErrors
        raise UserError(f"{path}: not a list of arms: {' '.join(str(error).split())[:200]}") from None
    first, *others = plan.arms
    found = [first, *(arm.model_copy(update={"overrides": [*plan.until_spent, *arm.overrides]}) for arm in others)]
    names = [arm.name for arm in found]
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"{path}: has no arm {unknown[0]!r}; there are {', '.join(names)}")
    return [found[0], *(arm for arm in found[1:] if not only or arm.name in only)]


def run_arms(
    config: Path, arms: Sequence[Arm], seeds: Sequence[int], overrides: Sequence[str], out: Path, say: Callable[[str], None]
) -> None:
    """Runs what has not ended yet, one run after the other; a run that fails ends the ablation with its last words."""
    for seed in seeds:
        first = out / arms[0].folder / f"seed-{seed}"
        for arm in arms:
            folder = out / arm.folder / f"seed-{seed}"
            if not (folder / "summary.json").exists():
                budget = []
                if folder != first:
                    share_start(first, folder)
                    budget = [f"run.token_budget={read_summary(first)['model_tokens']}"]
                say(f"{arm.name}, seed {seed}: {folder}")
                _train(config, folder, [*overrides, *arm.overrides, f"run.seed={seed}", *budget])
            say(f"{arm.name}, seed {seed}: held-out {_last(read_summary(folder)['heldout']):.3f}")


def share_start(first: Path, folder: Path) -> None:
    """A cold start takes minutes, and arms differ in nothing before its end."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        source, copy = first / name, folder / name
        if source.is_dir() and not copy.exists():
            shutil.copytree(source, copy)
        elif source.is_file() and not copy.exists():
            shutil.copy2(source, copy)


def _train(config: Path, folder: Path, overrides: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "medr3.cli", "train", str(config), *overrides, f"run.folder={folder}"]
    name = f"run.name={folder.parent.name}-{folder.name}"
    log = folder.with_suffix(".log")
    with log.open("a", encoding="utf-8") as output:
        code = subprocess.run([*command, name], stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code or not (folder / "summary.json").exists():
        last = (log.read_text(encoding="utf-8").splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{folder}: the run ended with code {code}: {last}; the same command goes on")


def _last(heldout: dict[str, float]) -> float:
    return list(heldout.values())[-1]
