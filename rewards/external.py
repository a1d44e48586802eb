"""A user's own reward: found by its dotted path, called in its style, its answer read."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from rewards.earned import Earned
from rewards.findings import Findings
from tasks.questions import Question
from trajectories.schema import Episode


def load(path: str) -> Callable[..., Any]:
    """The function at `package.module:function`; ValueError with one line where there is none.

    Example:
        >>> load("math:sqrt")(9.0)
        3.0
    """
    module_name, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # a module may fail in any way while it is imported
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name!r}")
    return function


def call(
    function: Callable[..., Any],
    style: str,
    arguments: Mapping[str, Any],
    question: Question,
    episode: Episode,
    findings: Findings,
) -> Earned:
    """What the function gives for an episode. A number that is not finite, and an answer of another kind, raise ValueError."""
    if style == "verl":
        given = function(question.source, episode.text, question.gold, verl_extra_info(question, episode), **arguments)
        given = given.get("score") if isinstance(given, dict) else given
    else:
        given = function(question, episode, findings, **arguments)
    earned = given if isinstance(given, Earned) else Earned(_number(given))
    return Earned(_number(earned.value), {int(turn): _number(share) for turn, share in earned.turns.items()}, earned.reason)


def verl_extra_info(question: Question, episode: Episode) -> dict[str, Any]:
    """What a verl-style function is told beside the response: the question's fields, and how the episode went."""
    return {
        **question.model_dump(mode="json"),
        "answer": episode.answer,
        "finish": episode.finish,
        "num_turns": len({search.turn for search in episode.searches}) + 1,
        "documents": [text for search in episode.searches for text in search.documents],
    }


def _number(given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"gave {type(given).__name__} instead of a number") from None
    if not math.isfinite(value):
        raise ValueError(f"gave {value}, which is no finite number")
    return value
