"""The components by name: what a reward recipe may speak of."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from rewards.answers import correct, correct_signed, no_answer, outcome
from rewards.config import RewardRecipe, RewardTerm
from rewards.earned import Earned
from rewards.evidence import evidence, evidence_quality, evidence_relative
from rewards.findings import NO_FINDINGS
from rewards.format import format_graded, format_signed, malformed, repeated_search, search_count, well_formed
from rewards.graph import graph_logic, graph_semantic, graph_statistic, reasoning_graph
from rewards.grounding import contrary_evidence, grounding
from rewards.language import language
from rewards.length import length_instruction, overlong, think_ratio
from rewards.overlap import text_overlap
from rewards.retrieval import gold_precision, gold_recall, information_gain, retrieval_proportion
from rewards.steps import authority, search_efficiency, step_relevance, step_validity
from tasks.questions import Question
from trajectories.schema import Episode

# What a component may need to be found out before scoring.
JUDGE, RELEVANCE, GRAPH, EMBEDDING = "judge", "relevance", "graph", "embedding"


class Component(NamedTuple):
    """A function of (question, episode, findings, arguments of the recipe), the range that its value never leaves, and what it
    needs to be found out first: "judge", "relevance", "graph", "embedding".
    """

    compute: Callable[..., Earned]
    low: float
    high: float
    needs: frozenset[str] = frozenset()


COMPONENTS: dict[str, Component] = {
    # answers
    "correct": Component(correct, 0.0, 1.0),
    "correct_signed": Component(correct_signed, -1.0, 1.0),
    "outcome": Component(outcome, -1.0, 1.0, frozenset({JUDGE})),
    "text_overlap": Component(text_overlap, -1.0, 1.0),
    "no_answer": Component(no_answer, -1.0, 0.0),
    # form, length, language
    "format": Component(well_formed, 0.0, 1.0),
    "format_graded": Component(format_graded, 0.0, 1.0),
    "format_signed": Component(format_signed, -1.0, 1.0),
    "language": Component(language, 0.0, 1.0),
    "think_ratio": Component(think_ratio, 0.0, 1.0),
    "overlong": Component(overlong, -1.0, 0.0),
    "length_instruction": Component(length_instruction, -1.0, 1.0),
    "malformed": Component(malformed, -1.0, 0.0),
    "search_count": Component(search_count, -1.0, 0.0),
    "repeated_search": Component(repeated_search, -1.0, 0.0),
    # retrieval and evidence
    "evidence": Component(evidence, 0.0, 1.0),
    "evidence_relative": Component(evidence_relative, 0.0, 1.0),
    "evidence_quality": Component(evidence_quality, 0.0, 1.0, frozenset({RELEVANCE})),
    "gold_recall": Component(gold_recall, 0.0, 1.0),
    "gold_precision": Component(gold_precision, 0.0, 1.0),
    "retrieval_proportion": Component(retrieval_proportion, 0.0, 1.0, frozenset({GRAPH, RELEVANCE})),
    "information_gain": Component(information_gain, -1.0, 1.0, frozenset({RELEVANCE})),
    "authority": Component(authority, 0.0, 1.0, frozenset({RELEVANCE})),
    "search_efficiency": Component(search_efficiency, 0.0, 1.0, frozenset({RELEVANCE})),
    "step_relevance": Component(step_relevance, 0.0, 2.0, frozenset({RELEVANCE, JUDGE})),
    "step_validity": Component(step_validity, -1.0, 0.0),
    "grounding": Component(grounding, 0.0, 1.0),
    "contrary_evidence": Component(contrary_evidence, -1.0, 0.0),
    # reasoning
    "reasoning_graph": Component(reasoning_graph, 0.0, 1.0, frozenset({GRAPH, EMBEDDING})),
    "graph_logic": Component(graph_logic, 0.0, 1.0, frozenset({GRAPH, EMBEDDING})),
    "graph_semantic": Component(graph_semantic, 0.0, 1.0, frozenset({GRAPH, EMBEDDING})),
    "graph_statistic": Component(graph_statistic, 0.0, 1.0, frozenset({GRAPH, EMBEDDING})),
}

_PROBE = (
    Question.model_validate({"id": "probe", "text": "?", "kind": "text", "gold": "x"}),
    Episode("", "", "", "", 0, "", "", "", [], [], [], [], [], []),
    NO_FINDINGS,
)


def needs(recipe: RewardRecipe) -> frozenset[str]:
    """What must be found out about an episode before this recipe can score it. A user's own reward sees what there is."""
    return frozenset().union(*(_needs(term) for term in recipe.all_terms if not term.is_own))


@lru_cache(maxsize=64)
def check_json(recipe: str) -> None:
    """`check_recipe` for the inner loop: one recipe scores thousands of episodes and needs one check."""
    check_recipe(RewardRecipe.model_validate_json(recipe))


def check_recipe(recipe: RewardRecipe) -> None:
    """Raises ValueError with one clear line where a recipe names what is not known, or with wrong arguments.

    A user's own reward is looked for where it will run; `medr3 rewards check` does so beforehand.
    """
    for term in recipe.all_terms:
        if term.is_own:
            continue
        if term.name not in COMPONENTS:
            raise ValueError(
                f"reward {term.name!r} is unknown{nearest(term.name, COMPONENTS)}; medr3 rewards list names them all"
            )
        _check_arguments(term)


def _needs(term: RewardTerm) -> frozenset[str]:
    asked = frozenset({RELEVANCE}) if term.arguments.get("relevant_only") else frozenset()
    return COMPONENTS[term.name].needs | asked


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say after a word that nobody knows.

    Example:
        >>> nearest("corect", ["correct", "format"])
        ': did you mean correct?'
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def arguments_of(name: str) -> list[str]:
    """The arguments that a component takes from a recipe."""
    parameters = inspect.signature(COMPONENTS[name].compute).parameters
    return [argument for argument, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]


def _check_arguments(term: RewardTerm) -> None:
    accepted = arguments_of(term.name)
    if unknown := sorted(term.arguments.keys() - set(accepted)):
        raise ValueError(f"reward {term.name!r} has no argument {unknown[0]!r}; it takes {', '.join(accepted) or 'none'}")
    try:
        COMPONENTS[term.name].compute(*_PROBE, **term.arguments)  # the component itself knows which values it can use
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {term.name!r}: {error}") from None
