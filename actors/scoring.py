"""From finished episodes to their scores: what rules cannot tell is found out first, then user rewards run, then the recipe adds up.

```
 episodes ─▶ gather findings ─▶ the user's own rewards, in processes that can be killed ─▶ score, in a thread ─▶ kept
                 └ judge failed ─────────┴ hung, crashed, raised ─▶ dropped, each with its reason
```
A dropped sample leaves its group and is counted; it never becomes a number, because a made-up reward would move the group's mean.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from actors.messages import DroppedSample, GroupRequest, GroupVoided
from rewards.composition import Score, score
from rewards.config import JudgeConfig, RewardRecipe
from rewards.earned import Earned
from rewards.findings import NO_FINDINGS, Findings, JudgeFailed
from rewards.gathering import Tools, gather
from rewards.isolation import IsolatedRewards, RewardFailed
from rewards.judge import Judge
from rewards.registry import needs
from trajectories.schema import Episode

SMALLEST_GROUP = 2  # what is compared needs another one beside it

Sample = tuple[Episode, Findings, dict[str, Earned]]


@dataclass(frozen=True, slots=True)
class Scored:
    """The episodes of a group that could be scored, in order, with their scores, and those that could not."""

    episodes: list[Episode]
    scores: list[Score]
    dropped: list[DroppedSample]


class Scorer:
    """Lives in one event loop. Its reward processes start when a recipe first has a reward of the user's own."""

    def __init__(self, judge: JudgeConfig | None = None) -> None:
        self._judge = Judge(judge) if judge else None
        self._own = IsolatedRewards()

    async def score(self, request: GroupRequest, recipe: RewardRecipe, episodes: list[Episode]) -> Scored:
        """Scores the episodes of a group in place; `GroupVoided` where too few are left to be compared."""
        findings = await self._findings(request, recipe, episodes)
        own = await asyncio.gather(
            *(self._own_rewards(request, recipe, *each) for each in zip(episodes, findings, strict=True))
        )
        samples: list[Sample] = []
        dropped: list[DroppedSample] = []
        for episode, found, earned in zip(episodes, findings, own, strict=True):
            if isinstance(found, JudgeFailed):
                dropped.append(DroppedSample(episode.episode_id, "judge", str(found)))
            elif isinstance(earned, RewardFailed):
                dropped.append(DroppedSample(episode.episode_id, "own_reward", str(earned)))
            else:
                samples.append((episode, found, earned))
        if len(samples) < min(SMALLEST_GROUP, len(episodes)):
            reason = dropped[0].reason
            raise GroupVoided(
                f"{len(dropped)} of {len(episodes)} samples could not be scored, the first because: {reason}", "reward"
            )
        scores = await asyncio.to_thread(_scores, request, recipe, samples)
        return Scored([episode for episode, _, _ in samples], scores, dropped)

    async def _findings(
        self, request: GroupRequest, recipe: RewardRecipe, episodes: list[Episode]
    ) -> list[Findings | JudgeFailed]:
        wanted = needs(recipe)
        if not wanted:
            return [NO_FINDINGS] * len(episodes)
        try:
            return await gather(request.question, episodes, wanted, Tools(judge=self._judge))
        except ValueError as error:
            raise GroupVoided(f"rewards of group {request.group_id}: {error}", "reward") from None

    async def _own_rewards(
        self, request: GroupRequest, recipe: RewardRecipe, episode: Episode, found: Findings | JudgeFailed
    ) -> dict[str, Earned] | RewardFailed:
        if isinstance(found, JudgeFailed):
            return {}
        try:
            return await self._own.run(recipe, request.question, episode, found)
        except RewardFailed as failure:
            return failure

    async def close(self) -> None:
        """Ends the reward processes and the judge's connections."""
        self._own.close()
        if self._judge is not None:
            await self._judge.__aexit__(None, None, None)


def _scores(request: GroupRequest, recipe: RewardRecipe, samples: list[Sample]) -> list[Score]:
    """Runs in a thread: a thousand long episodes take a second."""
    scores: list[Score] = []
    for episode, found, own in samples:
        try:
            earned = score(request.question, episode, recipe, found, own)
        except Exception as error:
            raise GroupVoided(
                f"reward failed for episode {episode.episode_id}: {type(error).__name__}: {error}", "reward"
            ) from error
        episode.rewards, episode.turn_rewards = earned.parts, earned.turn_rewards
        episode.reward, episode.correct = earned.total, earned.correct
        scores.append(earned)
    return scores
