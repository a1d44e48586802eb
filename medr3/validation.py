"""What is wrong with a configuration, in words that name the setting and not the validator."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from medr3.errors import did_you_mean
from security.hiding import holds_secret, is_secret_name


def describe_validation(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem of a configuration, each opening with its dotted key."""
    lines = []
    for problem in error.errors(include_url=False):
        location = problem["loc"]
        key = ".".join(str(part) for part in location)
        if problem["type"] == "extra_forbidden":
            known = _keys_below(model, location[:-1])
            lines.append(f"{key}: no such setting{did_you_mean(str(location[-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: is required")
        elif isinstance(problem["input"], str | int | float | bool) and not _may_be_secret(location, problem["input"]):
            lines.append(f"{key}: {_sentence(problem['msg'])}, got {problem['input']!r}")
        else:  # what does not fit together names its settings itself
            lines.append(f"{key}: {_sentence(problem['msg'])}" if key else _sentence(problem["msg"]))
    return lines


def _may_be_secret(location: tuple[str | int, ...], given: object) -> bool:
    """What was given is not repeated where a key is easily put by mistake: lines end up in logs."""
    names = [str(part) for part in location]
    wanted = any(is_secret_name(name) or name in ("api_key_env", "header_variables") for name in names)
    return wanted or "://" in str(given) or holds_secret(str(given))


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _keys_below(annotation: Any, path: tuple[str | int, ...]) -> list[str]:
    """The settings that exist at a dotted path of a model, through optional, list and dict fields."""
    candidates = [annotation]
    for part in path:
        candidates = [inner for candidate in candidates for inner in _step(candidate, part)]
    return sorted({key for candidate in candidates for model in _models(candidate) for key in model.model_fields})


def _step(annotation: Any, part: str | int) -> list[Any]:
    found = [model.model_fields[part].annotation for model in _models(annotation) if part in model.model_fields]
    if found or _models(annotation):
        return found
    return [argument for argument in typing.get_args(annotation) if argument not in (str, type(None))]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [model for argument in typing.get_args(annotation) for model in _models(argument)]
    return []
