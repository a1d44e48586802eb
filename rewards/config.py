"""A reward recipe: which components with which weights, gates and bounds; and the judge that some of them ask."""

from __future__ import annotations

import re
from functools import cached_property
from math import inf
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from security.addresses import check_url
from security.hiding import check_variable

DEADLINE_S = 2.0  # of a user's own reward: a step scores hundreds of episodes, and one that takes longer holds up the run
TAKEN_NAMES = ("mean", "std", "dropped_samples")  # metrics beside those of the components: reward/mean, …
# A user's own reward is named by where it lives: `my_package.module:function`.
OWN_REWARD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Condition(BaseModel):
    """What must hold of another component's value; that component must be in the recipe too, if only with weight 0.

    Example:
        >>> Condition(component="format", equals=0).holds(0.0), Condition(component="correct", at_least=0.5).holds(0.0)
        (True, False)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str = Field(description="its name in the recipe, or its label where it has one")
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    equals: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_comparison(self) -> Self:
        if (self.at_least is None) == (self.equals is None):
            raise ValueError(f"a condition on {self.component!r} needs either at_least or equals, and not both")
        return self

    def holds(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value == self.equals

    def __str__(self) -> str:
        return f"{self.component} ≥ {self.at_least:g}" if self.at_least is not None else f"{self.component} = {self.equals:g}"


class Bounds(BaseModel):
    """A value is raised to `low` and lowered to `high`; either may be left open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self

    def clip(self, value: float) -> float:
        if self.low is not None and value < self.low:
            return self.low
        return self.high if self.high is not None and value > self.high else value


class RewardTerm(BaseModel):
    """One component in a recipe. It contributes clip(weight · (value − baseline)) while its gate is open, else 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="a shipped component, or a reward of your own as package.module:function")
    label: str = Field(
        default="", pattern=r"^[\w.-]*$", description="the name in logs and conditions, where one component stands twice"
    )
    weight: float = Field(default=1.0, allow_inf_nan=False, description="0: logged only")
    baseline: float = Field(
        default=0.0, allow_inf_nan=False, description="1 turns a share of 1 into a penalty on what is missing"
    )
    arguments: dict[str, Any] = Field(default_factory=dict)
    when: Condition | None = Field(default=None, description="the gate: the term counts only where this holds")
    clip: Bounds = Bounds()
    style: Literal["medr3", "verl"] = Field(default="medr3", description="how a reward of your own is called")
    range: tuple[float, float] | None = Field(default=None, description="of a reward of your own: what its values never leave")
    deadline_s: float = Field(default=DEADLINE_S, gt=0, le=600, description="of a reward of your own: for one episode")

    @property
    def key(self) -> str:
        """What the term is called in logs, rows and conditions."""
        return self.label or self.name

    @property
    def is_own(self) -> bool:
        """Whether the reward is a user's, which runs in a process of its own."""
        return ":" in self.name

    @model_validator(mode="after")
    def _own_settings(self) -> Self:
        if self.is_own and not OWN_REWARD.fullmatch(self.name):
            raise ValueError(f"reward {self.name!r} is no path: write package.module:function")
        if self.key in TAKEN_NAMES:
            raise ValueError(
                f"reward {self.name!r}: the label {self.key!r} is taken by a metric of all rewards; choose another"
            )
        if not self.is_own and (self.style, self.range, self.deadline_s) != ("medr3", None, DEADLINE_S):
            raise ValueError(f"reward {self.name!r}: style, range and deadline_s are for rewards of your own")
        if self.range is not None and not -inf < self.range[0] <= self.range[1] < inf:
            raise ValueError(
                f"reward {self.name!r}: range needs two finite numbers, its lower bound first, got {list(self.range)}"
            )
        return self


class Replacement(BaseModel):
    """A fixed number in place of the terms' sum, or of the whole total, where the condition holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: Condition
    value: float = Field(allow_inf_nan=False)
    of: Literal["sum", "total"] = Field(default="sum", description="sum: the penalties still come on top")


class RewardRecipe(BaseModel):
    """The reward of a phase: total = replaced or clipped sum of `terms`, plus `penalties`; a replacement of the total is final."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: tuple[RewardTerm, ...]
    clip: Bounds = Field(default=Bounds(), description="of the sum of the terms")
    replace: tuple[Replacement, ...] = Field(
        default=(), description="the first that holds counts; of: total goes before of: sum"
    )
    penalties: tuple[RewardTerm, ...] = Field(default=(), description="added after the clip and the replacement of the sum")

    @cached_property
    def all_terms(self) -> tuple[RewardTerm, ...]:
        """Every term, whichever part it is in."""
        return (*self.terms, *self.penalties)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if not self.terms:
            raise ValueError("a recipe needs at least one term")
        keys = [term.key for term in self.all_terms]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(
                    f"reward {key!r} is named twice in one recipe; name it once with its whole weight, or give one a label"
                )
        conditions = [term.when for term in self.all_terms if term.when] + [replacement.when for replacement in self.replace]
        for condition in conditions:
            if condition.component not in keys:
                raise ValueError(
                    f"a condition waits for {condition.component!r}, which the recipe does not name; with weight 0 it is only logged"
                )
        return self


class JudgeConfig(BaseModel):
    """An OpenAI-compatible server that gives verdicts where rules cannot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://\S+$", description="up to and with the version, such as http://judge:8000/v1")
    model: str = Field(min_length=1)
    api_key_env: str = Field(default="", description="the environment variable that holds the key; empty: no key")
    cache: str = Field(default="", description="folder of replies, shared by all processes; empty: nothing is kept")
    concurrency: int = Field(default=64, ge=1, description="requests in flight of one process")
    deadline_s: float = Field(
        default=25.0,
        gt=0,
        description="of one verdict with all its attempts, from when it is its turn; below rollout.reward_timeout_s",
    )
    # 64 triples of usually 30 tokens are 20 s of a judge that writes 100 tokens per second.
    request_timeout_s: float = Field(default=20.0, gt=0)
    attempts: int = Field(default=4, ge=1, le=20)
    first_pause_s: float = Field(default=0.5, ge=0, description="before the second attempt; it doubles with every further one")
    longest_pause_s: float = Field(default=8.0, ge=0)
    # 64 triples × 60 tokens (two names of 20, a relation of 10, the turn and signs of 10) = 3840, and the object around them.
    max_tokens: int = Field(default=4096, ge=16, description="of a reply; extracted triples need the most")
    json_mode: bool = Field(default=True, description="ask the server for JSON; false for servers that refuse the option")
    rare_disease_sources: tuple[str, ...] = Field(
        default=("rarearena",), description="beginnings of data sources whose answers are judged by the rare-disease rubric"
    )

    _goes_where_it_may = field_validator("url")(check_url)
    _names_a_variable = field_validator("api_key_env")(check_variable)
