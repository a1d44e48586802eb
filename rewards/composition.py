"""The reward of an episode: the components of a recipe, gated, weighted, clipped and added.

```
 term:   contribution = clip(weight · (value − baseline)) while its gate is open, else 0
 sum:    clip(Σ contributions of the terms), or the value of the first replacement of the sum that holds
 total:  sum + Σ contributions of the penalties, or the value of the first replacement of the total that holds
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from rewards.config import Condition, Replacement, RewardRecipe, RewardTerm
from rewards.earned import Earned
from rewards.evidence import cited
from rewards.findings import NO_FINDINGS, Findings
from rewards.registry import COMPONENTS, check_json
from tasks.questions import Question
from trajectories.schema import Episode, RewardPart, TurnReward


@dataclass(frozen=True, slots=True)
class Line:
    """One term as it entered the sum; `note` says what a gate or a bound did to it."""

    name: str
    value: float
    weight: float
    contribution: float
    penalty: bool
    note: str
    reason: str


@dataclass(frozen=True, slots=True)
class Score:
    """What an episode earned, by name and in total.

    `parts` hold every component, those with weight 0 too. `turn_rewards` say which turn earned how much of a part. They are in
    the total already, follow its gates and bounds, and are never added to it again. `notes` say what was done to the sum.
    `cited_levels` are the known evidence levels of the retrieved documents that the model's thinking cites.
    """

    parts: list[RewardPart]
    turn_rewards: list[TurnReward]
    total: float
    correct: bool
    cited_levels: list[int]
    lines: list[Line]
    notes: list[str]


def score(
    question: Question,
    episode: Episode,
    recipe: RewardRecipe,
    findings: Findings = NO_FINDINGS,
    own: Mapping[str, Earned] | None = None,
) -> Score:
    """Scores one finished episode; `correct` is found out whether or not the recipe pays for it.

    `own` holds what the user's own rewards gave, by their names in the recipe: they ran before, in a process of their own.

    Example:
        >>> question = Question(id="q1", text="drug-dose lomab 7 kg ?", kind="number", gold="42", lower=42, upper=42)
        >>> episode = Episode("r", "g", "e", "q1", 0, "p", "s", "number", [], [], [], [], [], [], answer="42", finish="answer")
        >>> episode.text = "<think> 7 * 6 = 42 </think> <answer> 42 </answer>"
        >>> recipe = RewardRecipe.model_validate({"terms": [{"name": "correct"}, {"name": "format", "weight": 0.1}]})
        >>> score(question, episode, recipe).total
        1.1
    """
    check_json(recipe.model_dump_json())
    earned = {term.key: _earned(term, question, episode, findings, own or {}) for term in recipe.all_terms}
    terms = [_line(term, earned, penalty=False) for term in recipe.terms]
    penalties = [_line(term, earned, penalty=True) for term in recipe.penalties]
    summed, kept, notes = _summed(recipe, terms, earned)
    total = summed + fsum(line.contribution for line in penalties)
    kept_penalties = 1.0
    if final := _first(recipe.replace, "total", earned):
        total, kept, kept_penalties = final.value, 0.0, 0.0
        notes = [f"the total is {final.value:g}, because {final.when}"]
    turn_rewards = _turn_rewards(recipe.terms, terms, earned, kept)
    turn_rewards += _turn_rewards(recipe.penalties, penalties, earned, kept_penalties)
    return Score(
        parts=[RewardPart(term.key, earned[term.key].value, term.weight) for term in recipe.all_terms],
        turn_rewards=turn_rewards,
        total=total,
        correct=_is_right(question, episode, recipe, earned),
        cited_levels=[document.level for document in cited(episode) if 1 <= document.level <= 6],
        lines=[*terms, *penalties],
        notes=notes,
    )


def _earned(term: RewardTerm, question: Question, episode: Episode, findings: Findings, own: Mapping[str, Earned]) -> Earned:
    if term.is_own:
        if term.key not in own:
            raise ValueError(f"reward {term.key!r} is a user's own and was not run before scoring")
        return own[term.key]
    component = COMPONENTS[term.name]
    earned = component.compute(question, episode, findings, **term.arguments)
    if not component.low <= earned.value <= component.high:  # also false for NaN
        raise ValueError(f"reward {term.key!r}: {earned.value} is outside its range [{component.low}, {component.high}]")
    return earned


def _is_right(question: Question, episode: Episode, recipe: RewardRecipe, earned: Mapping[str, Earned]) -> bool:
    known = next((earned[term.key] for term in recipe.all_terms if term.name == "correct"), None)
    return (known or COMPONENTS["correct"].compute(question, episode, NO_FINDINGS)).value == 1.0


def _line(term: RewardTerm, earned: Mapping[str, Earned], *, penalty: bool) -> Line:
    gain = earned[term.key]
    raw = term.weight * (gain.value - term.baseline) + 0.0  # no −0
    contribution, note = raw, "" if term.weight else "logged only"
    if term.when is not None and not _holds(term.when, earned):
        contribution, note = 0.0, f"does not count: needs {term.when}"
    elif (clipped := term.clip.clip(raw)) != raw:
        contribution, note = clipped, f"clipped from {raw:.4g}"
    return Line(term.key, gain.value, term.weight, contribution, penalty, note, gain.reason)


def _summed(recipe: RewardRecipe, lines: Sequence[Line], earned: Mapping[str, Earned]) -> tuple[float, float, list[str]]:
    """The sum of the terms after clip or replacement, which share of the terms' turn rewards stays in it, and what to say."""
    raw = fsum(line.contribution for line in lines)
    if fixed := _first(recipe.replace, "sum", earned):
        return fixed.value, 0.0, [f"the terms' sum is {fixed.value:g} instead of {raw:.4g}, because {fixed.when}"]
    clipped = recipe.clip.clip(raw)
    notes = [] if clipped == raw else [f"the terms' sum is clipped from {raw:.4g} to {clipped:g}"]
    return clipped, _share(clipped, raw), notes


def _first(replacements: Sequence[Replacement], of: str, earned: Mapping[str, Earned]) -> Replacement | None:
    return next((each for each in replacements if each.of == of and _holds(each.when, earned)), None)


def _holds(condition: Condition, earned: Mapping[str, Earned]) -> bool:
    return condition.holds(earned[condition.component].value)


def _turn_rewards(
    terms: Sequence[RewardTerm], lines: Sequence[Line], earned: Mapping[str, Earned], kept: float
) -> list[TurnReward]:
    """Each term's turn shares, scaled to what is left of its contribution: they never say more than the total contains.

    A term with a baseline has none, because nobody can say which turn missed something.
    """
    found = []
    for term, line in zip(terms, lines, strict=True):
        gain = earned[term.key]
        factor = 0.0 if term.baseline else kept * term.weight * _share(line.contribution, term.weight * gain.value)
        if factor:
            found += [TurnReward(turn, term.key, factor * value) for turn, value in sorted(gain.turns.items()) if value]
    return found


def _share(bounded: float, raw: float) -> float:
    """How much of a raw amount a bound has left: 0 where it was pushed beyond zero, 1 where it was raised above itself."""
    return min(1.0, max(0.0, bounded / raw)) if raw else 1.0
