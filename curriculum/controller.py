"""Which phase is on, and when it ends: a pure controller that others tell what they saw and ask what to do."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean
from typing import Any

from curriculum.config import CurriculumConfig, PhaseConfig
from curriculum.plateau import PlateauDetector, Probe

# Training batches are too noisy to decide by; the mean of the last few stands beside a decision as evidence only.
REWARDS_KEPT = 8


class DecisionKind(StrEnum):
    """What follows a probe."""

    STAY = "stay"
    ADVANCE = "advance"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the controller decided about `phase`, and why. `left_by` is "plateau" or "max_steps" where the phase was left."""

    kind: DecisionKind
    phase: str
    reason: str
    left_by: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


class Controller:
    """Goes through the phases in order; each is left when its held-out curve is flat, or after its last step.

    ::

        should_probe? ─yes─▶ probe(score) ─▶ stay ──────────▶ one learner step ─▶ observe(reward) ─▶ should_probe? …
                                          ├▶ advance: the next phase is on, at its step 0, where its entry level is probed
                                          └▶ stop: the last phase was left

    Decisions are made by probes only, never before `min_steps` steps of the phase, and `max_steps` always ends in one.

    Example:
        >>> phase = {"name": "joint", "mixture": {"world": 1}, "reward": "full", "learning_rate": 1e-4}
        >>> phases = [phase | {"min_steps": 1, "max_steps": 2}]
        >>> controller = Controller(CurriculumConfig.model_validate({"phases": phases}))
        >>> controller.should_probe(), controller.probe(step=0, score=0.4, n=200).kind.value
        (True, 'stay')
        >>> for step in (1, 2):
        ...     controller.observe(step, training_reward=0.5)
        >>> decision = controller.probe(step=2, score=0.7, n=200)
        >>> decision.kind.value, decision.left_by, controller.finished
        ('stop', 'max_steps', True)
    """

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.finished = False
        self._last_step = -1
        self._index, self._steps, self._probed_at = 0, 0, -1
        self._rewards: deque[float] = deque(maxlen=REWARDS_KEPT)
        self._detector = PlateauDetector(self.phase.plateau)

    @property
    def phase(self) -> PhaseConfig:
        """The phase that is on; after the end, the last one."""
        return self.config.phases[self._index]

    @property
    def phase_index(self) -> int:
        return self._index

    @property
    def steps_in_phase(self) -> int:
        """Learner steps observed in this phase."""
        return self._steps

    def observe(self, step: int, training_reward: float) -> None:
        """One learner step is done."""
        self._must_run("observe")
        if not math.isfinite(training_reward):
            raise ValueError(f"step {step} of phase {self.phase.name!r}: the training reward is {training_reward}")
        if step <= self._last_step:
            raise ValueError(
                f"step {step} of phase {self.phase.name!r}: the last one observed was {self._last_step}; steps must grow"
            )
        self._last_step = step
        self._steps += 1
        self._rewards.append(training_reward)

    def should_probe(self) -> bool:
        """Due at the entry of a phase, every `probe_every` steps, and at `max_steps`; once probed, not before the next step."""
        if self.finished or self._probed_at == self._steps:
            return False
        return self._steps % self.phase.plateau.probe_every == 0 or self._steps >= self.phase.max_steps

    def probe(self, step: int, score: float, n: int) -> Decision:
        """Takes a held-out score of the phase that is on and decides; an advance is in effect when this returns."""
        self._must_run("probe")
        try:
            verdict = self._detector.observe(Probe(step, score, n))
        except ValueError as error:
            raise ValueError(f"phase {self.phase.name!r}: {error}") from None
        self._probed_at = self._steps
        evidence = {
            **verdict.evidence,
            "step": step,
            "score": score,
            "n": n,
            "steps_in_phase": self._steps,
            "mean_training_reward": fmean(self._rewards) if self._rewards else None,
        }
        name = self.phase.name
        if self._steps >= self.phase.max_steps:
            return self._leave("max_steps", f"{self._steps} steps are all that the phase may take; {verdict.words}", evidence)
        if verdict.flat and self._steps >= self.phase.min_steps:
            return self._leave("plateau", verdict.words, evidence)
        held = f"; the phase takes at least {self.phase.min_steps} steps" if verdict.flat else ""
        return Decision(DecisionKind.STAY, name, verdict.words + held, evidence=evidence)

    def snapshot(self) -> dict[str, Any]:
        """JSON for the manifest."""
        return {
            "phase": self.phase.name,
            "finished": self.finished,
            "steps_in_phase": self._steps,
            "probed_at": self._probed_at,
            "last_step": self._last_step,
            "rewards": list(self._rewards),
            "probes": self._detector.snapshot(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot. The phase is found by name, so phases may have been added or retuned since."""
        names = [phase.name for phase in self.config.phases]
        if snapshot["phase"] not in names:
            raise ValueError(
                f"curriculum: the snapshot is in phase {snapshot['phase']!r}; the configuration has {', '.join(names)}"
            )
        self._enter(names.index(snapshot["phase"]))
        self.finished = snapshot["finished"]
        self._steps, self._probed_at, self._last_step = snapshot["steps_in_phase"], snapshot["probed_at"], snapshot["last_step"]
        self._rewards.extend(snapshot["rewards"])
        self._detector = PlateauDetector(self.phase.plateau, [Probe(**probe) for probe in snapshot["probes"]])

    def _enter(self, index: int) -> None:
        self._index, self._steps, self._probed_at = index, 0, -1
        self._rewards.clear()
        self._detector = PlateauDetector(self.phase.plateau)

    def _leave(self, left_by: str, reason: str, evidence: dict[str, Any]) -> Decision:
        name = self.phase.name
        if self._index + 1 < len(self.config.phases):
            self._enter(self._index + 1)
            return Decision(DecisionKind.ADVANCE, name, reason, left_by, evidence)
        self.finished = True
        return Decision(DecisionKind.STOP, name, reason, left_by, evidence)

    def _must_run(self, what: str) -> None:
        if self.finished:
            raise ValueError(f"curriculum: {what} after the last phase {self.phase.name!r} was left")
