"""What each algorithm is made of: one row of a table. A setting that the configuration leaves out is read here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from learner.config import AlgorithmConfig

Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo", "sft"]
Advantage = Literal["none", "group", "group_mean", "leave_one_out", "batch", "batch_baseline", "turn", "gae"]
Surrogate = Literal["clipped", "sequence_clipped", "clipped_weight", "reinforce", "likelihood"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]
Correction = Literal["none", "token", "sequence"]
KlEstimator = Literal["k1", "k2", "k3"]
KlPlace = Literal["loss", "reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """An algorithm as published."""

    advantage: Advantage = "group"
    surrogate: Surrogate = "clipped"
    aggregation: Aggregation = "token_mean"
    correction: Correction = "token"
    kl_in: KlPlace = "loss"
    clip_low: float = 0.2
    clip_high: float = 0.2
    whiten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Defaults):
    """An algorithm as this run has it: nothing is left open."""

    kl_estimator: KlEstimator

    @property
    def needs_critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def on_policy_data(self) -> bool:
        """Whether tokens must come from engines that run this very policy; likelihood learns from any text."""
        return self.surrogate != "likelihood"

    @property
    def compares_groups(self) -> bool:
        """Whether a group whose rewards are all equal teaches nothing."""
        return self.advantage in ("group", "group_mean", "leave_one_out", "turn")


PUBLISHED: dict[Algorithm, Defaults] = {
    # DeepSeekMath, arXiv 2402.03300; mean over tokens and clip-higher, as Med-R³ trained.
    "grpo": Defaults(clip_high=0.28),
    # arXiv 2503.20783: neither the group's deviation nor an episode's length may scale the gradient.
    "dr_grpo": Defaults(advantage="group_mean", aggregation="constant"),
    # arXiv 2503.14476.
    "dapo": Defaults(clip_high=0.28),
    # arXiv 2507.18071; its bounds are small because a mean over an episode's tokens hardly moves.
    "gspo": Defaults(surrogate="sequence_clipped", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    # arXiv 2506.13585 has no lower bound (1 − 1 = 0); weights up to 5 as in arXiv 2510.13786.
    "cispo": Defaults(surrogate="clipped_weight", clip_low=1.0, clip_high=4.0),
    # arXiv 2402.14740: no clip. With several minibatches a step, surrogate: clipped keeps the later ones close.
    "rloo": Defaults(advantage="leave_one_out", surrogate="reinforce", kl_in="reward"),
    # arXiv 2501.03262.
    "reinforce_pp": Defaults(advantage="batch", kl_in="reward"),
    # arXiv 1707.06347, with advantages whitened as usual for language models.
    "ppo": Defaults(advantage="gae", kl_in="reward", whiten=True),
    "sft": Defaults(advantage="none", surrogate="likelihood", correction="none"),
}


def resolve(config: AlgorithmConfig) -> Recipe:
    """The algorithm's own row, with what the configuration sets in its place.

    Example:
        >>> from learner.config import LearnerConfig
        >>> recipe = resolve(LearnerConfig(algorithm="rloo", surrogate="clipped"))
        >>> recipe.advantage, recipe.surrogate, recipe.kl_estimator
        ('leave_one_out', 'clipped', 'k1')
    """
    settings = {field.name: getattr(config, field.name) for field in fields(Recipe)}
    chosen = asdict(PUBLISHED[config.algorithm]) | {name: value for name, value in settings.items() if value is not None}
    # Each is the best where it stands: see learner.losses.kl_estimate.
    chosen.setdefault("kl_estimator", "k3" if chosen["kl_in"] == "loss" else "k1")
    return Recipe(**chosen)
