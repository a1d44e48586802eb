"""The components by name: what a reward recipe may speak of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from rewards.answers import is_correct
from rewards.config import RewardRecipe, RewardTerm
from rewards.earned import Earned
from rewards.evidence import evidence, evidence_relative, gold_recall
from rewards.format import is_well_formed, malformed, search_count, well_formed
from tasks.questions import Question
from trajectories.schema import Episode


def correct(question: Question, episode: Episode) -> Earned:
    """1 for a right answer of a well-formed episode, else 0."""
    return Earned(float(is_well_formed(episode) and is_correct(question, episode.answer)))


class Component(NamedTuple):
    """A function of (question, episode, arguments of the recipe) and the range that its value never leaves."""

    compute: Callable[..., Earned]
    low: float
    high: float


COMPONENTS: dict[str, Component] = {
    "correct": Component(correct, 0.0, 1.0),
    "format": Component(well_formed, 0.0, 1.0),
    "evidence": Component(evidence, 0.0, 1.0),
    "evidence_relative": Component(evidence_relative, 0.0, 1.0),
    "gold_recall": Component(gold_recall, 0.0, 1.0),
    "malformed": Component(malformed, -1.0, 0.0),
    "search_count": Component(search_count, -1.0, 0.0),
}

_PROBE = (
    Question.model_validate({"id": "probe", "text": "?", "kind": "text", "gold": "x"}),
    Episode("", "", "", "", 0, "", "", "", [], [], [], [], [], []),
)


@lru_cache(maxsize=64)
def check_json(recipe: str) -> None:
    """`check_recipe` for the inner loop: one recipe scores thousands of episodes and needs one check."""
    check_recipe(RewardRecipe.model_validate_json(recipe))


def check_recipe(recipe: RewardRecipe) -> None:
    """Raises ValueError with one clear line where a recipe names what is not known, twice, or with wrong arguments."""
    names = [term.name for term in recipe.terms]
    for term in recipe.terms:
        if term.name not in COMPONENTS:
            raise ValueError(f"reward {term.name!r} is unknown; known are {', '.join(sorted(COMPONENTS))}")
        if names.count(term.name) > 1:
            raise ValueError(f"reward {term.name!r} is named twice in one recipe; name it once with its whole weight")
        _check_arguments(term)


def _check_arguments(term: RewardTerm) -> None:
    compute = COMPONENTS[term.name].compute
    accepted = [
        name for name, parameter in inspect.signature(compute).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    ]
    if unknown := sorted(term.arguments.keys() - set(accepted)):
        raise ValueError(f"reward {term.name!r} has no argument {unknown[0]!r}; it takes {', '.join(accepted) or 'none'}")
    try:
        compute(*_PROBE, **term.arguments)  # the component itself knows which values it can use
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {term.name!r}: {error}") from None
