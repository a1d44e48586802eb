"""What ends, opens and takes back a phase, as data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PlateauConfig(BaseModel):
    """When a held-out curve counts as flat. The defaults were chosen by `medr3 bench curves` (docs/curriculum.md)."""

    model_config = ConfigDict(extra="forbid")

    probe_every: int = Field(default=3, ge=1, description="learner steps between two held-out probes")
    window: int = Field(default=6, ge=3, description="probes that the slope is fitted to")
    min_improvement: float = Field(
        default=0.1, gt=0, description="flat: the next window of probes would surely gain less than this"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="how sure: the level of the slope's upper bound")
    patience: int = Field(default=2, ge=1, description="how many probes must confirm it")
    min_level: float | None = Field(default=None, description="a flat curve below this score is stuck, not done")
    when_stuck: Literal["hold", "leave"] = Field(default="hold", description="hold: until max_steps; leave: as any flat curve")

    @property
    def horizon(self) -> int:
        """Learner steps of one window."""
        return self.window * self.probe_every


class ExitRule(BaseModel):
    """What a phase is left by, after `min_steps`; `max_steps` always ends it.

    Example:
        >>> ExitRule(score=0.9, combine="any")  # a plateau, or 0.9 before that
        ExitRule(plateau=True, score=0.9, combine='any')
    """

    model_config = ConfigDict(extra="forbid")

    plateau: bool = Field(default=True, description="the held-out curve must be flat; false: it does not matter")
    score: float | None = Field(
        default=None, gt=0, le=1, description="held-out score that `plateau.patience` probes must reach"
    )
    combine: Literal["all", "any"] = Field(default="all", description="plateau and score, or either of them")


class EntryRule(BaseModel):
    """What a phase requires of the score with which it is entered, measured by its own first probe."""

    model_config = ConfigDict(extra="forbid")

    score: float = Field(gt=0, le=1, description="the least held-out score")
    otherwise: str = Field(description="name of the phase to go to instead, or `stop`")
    attempts: int = Field(default=1, ge=1, description="refusals; after so many the phase is entered all the same")


class RegressRule(BaseModel):
    """When earlier phases are forgotten: their held-out scores are probed beside this phase's own."""

    model_config = ConfigDict(extra="forbid")

    phases: list[str] = Field(default_factory=list, description="which earlier ones; empty: all")
    max_drop: float = Field(
        default=0.1, gt=0, lt=1, description="below the score with which it was left; goes back if it fell further"
    )
    patience: int = Field(default=2, ge=1, description="how many probes in a row must say so")
    attempts: int = Field(default=1, ge=0, description="how often this phase goes back; 0: only says it")


class Signal(BaseModel):
    """One metric of the learner step that is watched, and which change of it is bad."""

    model_config = ConfigDict(extra="forbid")

    metric: str = Field(min_length=1, description="as in metrics.jsonl")
    bad: Literal["down", "up", "both"] = "down"
    min_change: float = Field(gt=0, description="a smaller change never matters, however unusual it is")
    relative: bool = Field(default=False, description="min_change is a share of the reference, not an amount")


# A policy that falls apart shows it in several of these at once; each alone also moves in healthy training.
SIGNALS = {
    "reward": Signal(metric="reward/mean", bad="down", min_change=0.3, relative=True),
    # It falls in every healthy run, by half within some tens of steps; a collapse takes nearly all of it, or sets it free.
    "entropy": Signal(metric="learner/entropy", bad="both", min_change=0.6, relative=True),
    "length": Signal(metric="rollout/response_tokens", bad="both", min_change=0.4, relative=True),
    "answered": Signal(metric="finish/answer", bad="down", min_change=0.2),
}


class CollapseConfig(BaseModel):
    """When training counts as collapsed, and what follows."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    signals: dict[str, Signal] = Field(default_factory=lambda: dict(SIGNALS), min_length=1)
    reference_steps: int = Field(default=12, ge=4, description="steps of the phase that the last ones are compared with")
    recent_steps: int = Field(default=3, ge=1, description="the last ones: their median counts")
    warn_at: float = Field(default=5.0, gt=0, description="robust deviations from the reference")
    clear_at: float = Field(default=2.5, gt=0, description="a signal that was off is well again below this")
    signals_to_collapse: int = Field(default=2, ge=1, description="so many signals off at once")
    patience: int = Field(default=3, ge=1, description="steps in a row before it is called collapsed")
    max_rollbacks: int = Field(default=2, ge=0, description="to the last checkpoint, per phase; then the run ends")
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1, description="of the phase's rate, after each roll-back")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.clear_at > self.warn_at:
            raise ValueError(
                f"clear_at {self.clear_at:g} is above warn_at {self.warn_at:g}: a signal would be off and well at once"
            )
        if self.signals_to_collapse > len(self.signals):
            raise ValueError(
                f"signals_to_collapse is {self.signals_to_collapse}, but only {len(self.signals)} signals are watched"
            )
        return self
