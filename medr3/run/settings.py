"""Which settings of two configurations differ, and which of them a fork may change.

A resume goes on with the same course, so it may change what `medr3.config.PLACE` names and nothing else. A fork is another course
from the same weights: it may change everything but what those weights, their words and their questions are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from learner.algorithms import resolve
from medr3.config import PLACE, RunConfig

# By dotted name, or the opening of one; everything else may change.
FIXED = {
    "model": "the checkpoint's tensors and token ids are of that model",
    "world": "it makes the questions, the documents and the tiny model's words",
    "cold_start": "the checkpoint's weights began there",
    "run.seed": "the worlds are drawn from it",
    "learner.lora": "the checkpoint holds the tensors that were trained, and others would be",
}
INDEX = tuple(
    f"retrieval.{name}"
    for name in (
        "index", "encoder", "encoder_pooling", "query_prefix", "document_prefix", "dimensions", "factory", "nprobe", "ef_search",
    )
)  # fmt: skip


class Change(NamedTuple):
    """One setting that differs; `before` or `now` is None where it does not exist."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.now)}, and was {_shown(self.before)}"


def changes(before: RunConfig, now: RunConfig) -> list[Change]:
    """What decides the course and differs, by dotted names; phases go by theirs. Where and on how much a run runs is left out."""
    old, new = (dict(_flat(config.model_dump(mode="json", exclude=PLACE))) for config in (before, now))
    return [Change(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]


def forbidden(before: RunConfig, now: RunConfig, *, new_index: bool) -> list[str]:
    """One line for each change that a fork may not make; empty where it may begin."""
    found = changes(before, now)
    lines = [f"{change}: {reason}" for change in found if (reason := _reason(change, new_index=new_index))]
    critics = [resolve(config.learner).needs_critic for config in (before, now)]
    if critics[0] != critics[1]:
        words = ("has no critic, and this needs one", "has a critic, and this trains none")
        lines.append(
            f"learner.algorithm is {now.learner.algorithm}, and was {before.learner.algorithm}: the checkpoint {words[critics[0]]}"
        )
    return lines


def _reason(change: Change, *, new_index: bool) -> str:
    for name, reason in FIXED.items():
        if change.name == name or change.name.startswith(f"{name}."):
            return reason
    if change.name in INDEX and not new_index:
        return "its answers would change with another index: say --new-index if that is meant"
    if change.name.startswith("datasets.") and change.before is not None:
        return "what was asked so far is counted in it: add the changed data set under another name"
    return ""


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted names. A list of things with names is a dictionary of them."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        value = {each["name"]: each for each in value}
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
