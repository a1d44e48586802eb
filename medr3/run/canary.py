"""The canary of a run: a text that its policy knows well, so that any wrong weight shows in the log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tasks.cold_start import encode
from tasks.questions import Document
from tasks.teacher import Demonstration, demonstrate
from tasks.tokenizer import load_tokenizer
from tasks.world import Universe


def canary_tokens(universe: Universe, model: Path) -> list[int]:
    """A teacher episode on a gate question, as the model's tokenizer spells it."""
    return canary_speller(universe, model)()


def canary_speller(universe: Universe, model: Path) -> Callable[[], list[int]]:
    """The same, to be called where a tokenizer is at hand: to import one takes the driver of a run seconds before anything starts."""
    world = universe.held_out["gate"]

    def search(collection: str, query: str) -> list[Document]:
        relation, subject = query.split()
        return list(world.facts[relation, subject].documents)

    return partial(_spell, demonstrate(world, world.question("world/joint", 0), random.Random(0), search), str(model.resolve()))


def _spell(demonstration: Demonstration, model: str) -> list[int]:
    ids, _ = encode(demonstration, load_tokenizer(model))
    return ids
