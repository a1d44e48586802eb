"""A configuration may build on other files: `base` names another configuration, `curriculum` a shipped plan of phases.

    base: med_r3.yaml          # beside this file; what stands here goes before what stands there
    curriculum: med_r3         # configs/phases/med_r3.yaml; with more settings: {plan: med_r3, collapse: {max_rollbacks: 0}}

What is resolved holds neither: it is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from medr3.errors import UserError, did_you_mean
from security.yaml_files import read_yaml

PLANS = Path(__file__).parents[1] / "configs" / "phases"


def read_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration's settings as they stand in its file, on top of its base's."""
    raw = _read(path, "name a configuration such as configs/demo.yaml")
    if "base" not in raw:
        return raw
    name = raw.pop("base")
    if not isinstance(name, str) or not name.isprintable():
        raise UserError(f"{path}: base must name another configuration, relative to this one, not {name!r}")
    base = path.parent / name
    way = (*above, path.resolve())
    if base.resolve() in way:
        raise UserError(f"{path}: base {name} leads back to itself: {' → '.join(file.name for file in (*way, base))}")
    return merged(read_config(base, way), raw)


def name_plan(raw: dict[str, Any]) -> None:
    """`curriculum: NAME` is short for `curriculum: {plan: NAME}`."""
    if isinstance(raw.get("curriculum"), str):
        raw["curriculum"] = {"plan": raw["curriculum"]}


def include_plan(raw: dict[str, Any]) -> None:
    """Puts the plan that the curriculum names, if any, in its place."""
    name_plan(raw)
    curriculum = raw.get("curriculum")
    if not isinstance(curriculum, dict) or "plan" not in curriculum:
        return
    name = curriculum.pop("plan")
    if "phases" in curriculum:
        raise UserError(
            f"curriculum.plan is {name!r}, but the curriculum has phases of its own: leave one out, or write curriculum={name}"
        )
    raw["curriculum"] = merged(read_plan(name), curriculum)


def shipped_plans() -> list[str]:
    """The names that `curriculum` may have.

    Example:
        >>> shipped_plans()
        ['demo', 'med_r3', 'med_u1', 'medresearcher_r1', 'r3_rag']
    """
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def read_plan(name: Any) -> dict[str, Any]:
    """The settings of `curriculum` that a shipped plan stands for."""
    known = shipped_plans()
    if name not in known:
        raise UserError(f"curriculum: no plan {name!r} among {', '.join(known)}{did_you_mean(str(name), known)}")
    return _read(PLANS / f"{name}.yaml", "it is part of the checkout")


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings on top of others: sections are merged, all else is replaced.

    Example:
        >>> merged({"run": {"seed": 0, "name": "a"}, "x": [1, 2]}, {"run": {"name": "b"}, "x": [3]})
        {'run': {'seed': 0, 'name': 'b'}, 'x': [3]}
    """
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def _read(path: Path, advice: str) -> dict[str, Any]:
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: {advice}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueErrors: dates that are none, no UTF-8, no path
        raise UserError(f"{path}: not valid YAML: {_problem(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold settings by name, not {type(raw).__name__}")
    return raw


def _problem(error: Exception) -> str:
    """Where it is and what; the parser's own text shows the file in several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(str(error.problem).split())}"
    return " ".join(str(error).split())
