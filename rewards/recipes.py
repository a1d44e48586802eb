"""The shipped recipes: one file per method under configs/rewards/, one recipe per phase in it."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from rewards.config import RewardRecipe
from rewards.registry import check_recipe, nearest
from security.yaml_files import read_yaml

FOLDER = Path(__file__).parents[1] / "configs" / "rewards"


def shipped(folder: Path = FOLDER) -> list[str]:
    """The names of all shipped recipes, as a run's configuration may use them.

    Example:
        >>> "med_r3/retrieval" in shipped()
        True
    """
    return [f"{path.stem}/{phase}" for path in sorted(folder.glob("*.yaml")) for phase in _phases(path)]


def load_recipe(name: str, folder: Path = FOLDER) -> RewardRecipe:
    """The recipe `method/phase`; the phase may be left out where a method has one only. ValueError with one line where there is none."""
    method, _, phase = name.partition("/")
    path = folder / f"{method}.yaml"
    if not path.is_file():
        known = [file.stem for file in sorted(folder.glob("*.yaml"))]
        raise ValueError(
            f"no reward recipe {method!r} in {folder}{nearest(method, known)}; there are {', '.join(known) or 'none'}"
        )
    phases = _phases(path)
    if not phase and len(phases) == 1:
        phase = phases[0]
    if phase not in phases:
        wanted = f"has no phase {phase!r}{nearest(phase, phases)}" if phase else "has several phases: name one"
        raise ValueError(f"reward recipe {method!r} {wanted}; there are {', '.join(phases)}")
    try:
        recipe = RewardRecipe.model_validate(_read(path)[phase])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, (phase, *first["loc"])))
        raise ValueError(" ".join(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}".split())) from None
    check_recipe(recipe)
    return recipe


def _phases(path: Path) -> list[str]:
    return list(_read(path))


def _read(path: Path) -> dict[str, object]:
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # ValueErrors: dates that are none, no UTF-8
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold recipes by phase")
    return {str(phase): recipe for phase, recipe in found.items()}  # YAML reads a phase named 1 as a number
