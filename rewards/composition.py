"""The reward of an episode: the components of a recipe, weighted and added."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.config import RewardRecipe
from rewards.evidence import cited
from rewards.registry import COMPONENTS, check_json
from tasks.questions import Question
from trajectories.schema import Episode, RewardPart, TurnReward


@dataclass(frozen=True, slots=True)
class Score:
    """What an episode earned, by name and in total.

    `turn_rewards` say which turn earned how much of a weighted part; they are in the total already, never added to it again.
    `cited_levels` are the known evidence levels of the retrieved documents that the model's thinking cites.
    """

    parts: list[RewardPart]
    turn_rewards: list[TurnReward]
    total: float
    correct: bool
    cited_levels: list[int]


def score(question: Question, episode: Episode, recipe: RewardRecipe) -> Score:
    """Scores one finished episode; `correct` is found out whether or not the recipe pays for it.

    Example:
        >>> question = Question(id="q1", text="drug-dose lomab 7 kg ?", kind="number", gold="42", lower=42, upper=42)
        >>> episode = Episode("r", "g", "e", "q1", 0, "p", "s", "number", [], [], [], [], [], [], answer="42", finish="answer")
        >>> episode.text = "<think> 7 * 6 = 42 </think> <answer> 42 </answer>"
        >>> recipe = RewardRecipe.model_validate({"terms": [{"name": "correct"}, {"name": "format", "weight": 0.1}]})
        >>> score(question, episode, recipe).total
        1.1
    """
    check_json(recipe.model_dump_json())
    parts: list[RewardPart] = []
    turn_rewards: list[TurnReward] = []
    for term in recipe.terms:
        component = COMPONENTS[term.name]
        earned = component.compute(question, episode, **term.arguments)
        if not component.low <= earned.value <= component.high:  # also false for NaN
            raise ValueError(f"reward {term.name!r}: {earned.value} is outside its range [{component.low}, {component.high}]")
        parts.append(RewardPart(term.name, earned.value, term.weight))
        turn_rewards += [TurnReward(turn, term.name, term.weight * value) for turn, value in sorted(earned.turns.items())]
    return Score(
        parts=parts,
        turn_rewards=turn_rewards,
        total=sum(part.value * part.weight for part in parts),
        correct=COMPONENTS["correct"].compute(question, episode).value == 1.0,
        cited_levels=[document.level for document in cited(episode) if 1 <= document.level <= 6],
    )
