"""Which phase is on, and when it changes: a pure controller that others tell what they saw and ask what to do."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean, median
from typing import Any, Literal, get_args

from curriculum.collapse import CollapseDetector, CollapseVerdict, Health
from curriculum.config import CurriculumConfig, PhaseConfig
from curriculum.plan import STOP
from curriculum.plateau import PlateauDetector, Probe, Verdict

# Training batches are too noisy to decide by; the mean of the last few stands beside a decision as evidence only.
REWARDS_KEPT = 8
# The score that a phase is left with is the median of so many probes: one of them alone is too noisy to be held to.
LEVEL_PROBES = 3

Command = Literal["advance", "hold", "back", "auto"]
COMMANDS: tuple[Command, ...] = get_args(Command)


class DecisionKind(StrEnum):
    """What follows a probe, a learner step, or somebody's word."""

    STAY = "stay"
    ADVANCE = "advance"
    REGRESS = "regress"
    ROLL_BACK = "roll_back"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the controller decided about `phase`, and why.

    Where a phase was left, `left_by` is "plateau", "score", "max_steps", "entry", "forgetting", "collapse", "override" or what `stop`
    was told, and `to` the phase that is on now, or empty at the end. A roll-back leaves no phase: weights from before
    `evidence["since"]` are to be loaded.
    """

    kind: DecisionKind
    phase: str
    reason: str
    left_by: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    to: str = ""


class Controller:
    """Goes through the phases in order; each is left by its exit rule, after its last step, or by somebody's word.

    ::

        should_probe? ─yes─▶ probe(score) ─▶ stay ──────────▶ one learner step ─▶ observe(reward) ─▶ should_probe? …
                                          ├▶ advance: the next phase is on, at its step 0, where its entry level is probed
                                          ├▶ regress: an earlier one is on, as this one's entry or regress rule says
                                          └▶ stop: the last phase was left
        observe(reward, metrics) ─▶ roll back: the caller loads a checkpoint, then rolled_back(its snapshot) ─▶ should_probe? …
        override(command)        ─▶ any of them, at any time between two steps

    The exit rule never acts before `min_steps` steps of the phase, and `max_steps` always ends it, unless it is held by hand.

    Example:
        >>> phase = {"name": "joint", "mixture": {"world": 1}, "reward": "full", "learning_rate": 1e-4}
        >>> phases = [phase | {"min_steps": 1, "max_steps": 2}]
        >>> controller = Controller(CurriculumConfig.model_validate({"phases": phases}))
        >>> controller.should_probe(), controller.probe(step=0, score=0.4, n=200).kind.value
        (True, 'stay')
        >>> for step in (1, 2):
        ...     _ = controller.observe(step, training_reward=0.5)
        >>> decision = controller.probe(step=2, score=0.7, n=200)
        >>> decision.kind.value, decision.left_by, controller.finished
        ('stop', 'max_steps', True)
    """

    # What belongs to the visit of one phase: `_enter` begins it anew.
    _index: int
    _steps: int
    _probed_at: int
    _drops: Counter[str]  # probes in a row that found an earlier phase forgotten
    _detector: PlateauDetector
    _collapse: CollapseDetector

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.finished = False
        self.health: CollapseVerdict | None = None  # of the last step, where its metrics were told
        self.held = False  # by hand: the phase stays, whatever its rules say
        self._last_step = -1
        self._refusals, self._regressions, self._rollbacks = Counter[str](), Counter[str](), Counter[str]()  # by phase
        self._levels: dict[str, float] = {}  # by phase: the score that it was left with
        self._rewards: deque[float] = deque(maxlen=REWARDS_KEPT)
        self._trained = [index for index, phase in enumerate(config.phases) if phase.train]
        self._enter(self._trained[0] if self._trained else len(config.phases) - 1)
        self.finished = not self._trained

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

    @property
    def learning_rate_factor(self) -> float:
        """Of the phase's learning rate: lower after every roll-back within the phase."""
        return float(self.config.collapse.learning_rate_factor ** self._rollbacks[self.phase.name])

    @property
    def watched(self) -> list[PhaseConfig]:
        """Earlier phases whose held-out scores the next `probe` must be told; none at the entry, where nothing was trained yet."""
        rule = self.phase.regress
        if rule is None or self._probed_at < 0:
            return []
        earlier = self.config.phases[: self._index]
        return [phase for phase in earlier if phase.name in self._levels and phase.name in (rule.phases or self._levels)]

    def observe(self, step: int, training_reward: float, metrics: Mapping[str, float] | None = None) -> Decision | None:
        """One learner step is done. With its metrics, a collapse is decided about at once; else there is nothing to decide."""
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
        if metrics is None or not self.config.collapse.enabled:
            return None
        self.health = self._collapse.observe(step, metrics)
        return self._collapsed(self.health) if self.health.health is Health.COLLAPSED else None

    def should_probe(self) -> bool:
        """Due at the entry of a phase, every `probe_every` steps, and at `max_steps`; once probed, not before the next step."""
        if self.finished or self._probed_at == self._steps:
            return False
        return self._steps % self.phase.plateau.probe_every == 0 or (self._steps >= self.phase.max_steps and not self.held)

    def probe(
        self, step: int, score: float, n: int, noise: float | None = None, earlier: Mapping[str, float] | None = None
    ) -> Decision:
        """Takes a held-out score of the phase that is on, and of the `watched` ones; what it decides is in effect on return.

        `noise` is the score's standard error where it was measured (`curriculum.plateau.paired_noise`).
        """
        self._must_run("probe")
        known = self._known(step, earlier or {})
        try:
            verdict = self._detector.observe(Probe(step, score, n, noise))
        except ValueError as error:
            raise ValueError(f"phase {self.phase.name!r}: {error}") from None
        entering, self._probed_at = self._probed_at < 0, self._steps
        evidence = {**verdict.evidence, "state": verdict.state, **self._circumstances(step), "score": score, "n": n}
        if self.held:
            return self._stay(f"{verdict.words}; held by hand until `advance`, `back` or `auto`", evidence)
        if entering and (refused := self._refused(score, evidence)) is not None:
            return refused
        if (forgotten := self._forgotten(known, evidence)) is not None:
            return forgotten
        if self._steps >= self.phase.max_steps:
            return self._leave("max_steps", f"{self._steps} steps are all that the phase may take; {verdict.words}", evidence)
        left_by, words = self._exit(verdict)
        if left_by and self._steps >= self.phase.min_steps:
            return self._leave(left_by, words, evidence)
        return self._stay(words + (f"; the phase takes at least {self.phase.min_steps} steps" if left_by else ""), evidence)

    def override(self, command: Command, step: int) -> Decision:
        """Somebody's word, between two steps; in effect when this returns."""
        self._must_run("override")
        evidence = self._circumstances(step) | {"command": command}
        if command == "advance":
            return self._leave("override", "asked to advance", evidence)
        if command == "back":
            before = [index for index in self._trained if index < self._index]
            if not before:
                return self._stay(f"asked to go back, but {self.phase.name!r} is the first phase", evidence)
            return self._go(DecisionKind.REGRESS, before[-1], "override", "asked to go back", evidence)
        if command not in COMMANDS:
            raise ValueError(f"{command!r} is no command; there are {', '.join(COMMANDS)}")
        self.held = command == "hold"
        return self._stay("held by hand until `advance`, `back` or `auto`" if self.held else "its rules decide again", evidence)

    def stop(self, left_by: str, reason: str, step: int) -> Decision:
        """Ends the run with the phase that is on, for a reason that is not the curriculum's."""
        self._must_run("stop")
        return self._end(left_by, reason, self._circumstances(step))

    def rolled_back(self, snapshot: dict[str, Any]) -> None:
        """The caller loaded the checkpoint of this snapshot: goes on from there, but knows how often it had to, and what was said."""
        rollbacks, held = self._rollbacks, self.held
        self.restore(snapshot)
        self._rollbacks, self.held = rollbacks, held

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
            "held": self.held,
            "refusals": dict(self._refusals),
            "regressions": dict(self._regressions),
            "rollbacks": dict(self._rollbacks),
            "levels": dict(self._levels),
            "drops": dict(self._drops),
            "collapse": self._collapse.snapshot(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot. The phase is found by name, so phases may have been added or retuned since."""
        names = [phase.name for phase in self.config.phases]
        if snapshot["phase"] not in names:
            raise ValueError(
                f"curriculum: the snapshot is in phase {snapshot['phase']!r}; the configuration has {', '.join(names)}"
            )
        self._enter(names.index(snapshot["phase"]))
        self.finished, self.held = snapshot["finished"], snapshot["held"]
        self._steps, self._probed_at, self._last_step = snapshot["steps_in_phase"], snapshot["probed_at"], snapshot["last_step"]
        self._refusals, self._regressions = Counter(snapshot["refusals"]), Counter(snapshot["regressions"])
        self._rollbacks, self._drops = Counter(snapshot["rollbacks"]), Counter(snapshot["drops"])
        self._levels = dict(snapshot["levels"])
        self._rewards.extend(snapshot["rewards"])
        self._detector = PlateauDetector(self.phase.plateau, [Probe(**probe) for probe in snapshot["probes"]])
        self._collapse.restore(snapshot["collapse"])

    def _enter(self, index: int) -> None:
        self._index, self._steps, self._probed_at = index, 0, -1
        self._rewards.clear()
        self._drops = Counter()
        self._detector = PlateauDetector(self.phase.plateau)
        self._collapse = CollapseDetector(self.config.collapse)  # another task, another normal
        self.health = None

    def _exit(self, verdict: Verdict) -> tuple[str, str]:
        """By what the phase would be left as its rule now stands, or an empty word; and why."""
        rule, patience = self.phase.exit, self.phase.plateau.patience
        if rule.score is None:
            return "plateau" if verdict.flat and rule.plateau else "", verdict.words
        last = self._detector.probes[-patience:]
        reached = len(last) == patience and all(probe.score >= rule.score for probe in last)
        words = f"{verdict.words}; {rule.score:g} was {'reached' if reached else 'not reached'} by the last {patience} probes"
        if not rule.plateau or rule.combine == "any":
            return "score" if reached else "plateau" if verdict.flat and rule.plateau else "", words
        return "plateau" if reached and verdict.flat else "", words

    def _refused(self, score: float, evidence: dict[str, Any]) -> Decision | None:
        """Where the phase that was just entered requires more than the policy can do yet."""
        rule, name = self.phase.entry, self.phase.name
        if rule is None or score >= rule.score:
            return None
        if self._refusals[name] >= rule.attempts:
            evidence["entry"] = f"{score:.3f} is below {rule.score:g}, but it was refused {rule.attempts} times already"
            return None
        self._refusals[name] += 1
        reason = f"entered with {score:.3f}, and it requires {rule.score:g}: {rule.otherwise}"
        if rule.otherwise == STOP:
            return self._end("entry", reason, evidence)
        index = [phase.name for phase in self.config.phases].index(rule.otherwise)
        kind = DecisionKind.ADVANCE if index > self._index else DecisionKind.REGRESS
        return self._go(kind, index, "entry", reason, evidence)

    def _known(self, step: int, earlier: Mapping[str, float]) -> dict[str, float]:
        """The scores of the watched phases; each of them must be told."""
        for phase in self.watched:
            score = earlier.get(phase.name)
            if score is None or not math.isfinite(score):
                told = "was not told" if score is None else f"is {score}"
                raise ValueError(
                    f"phase {self.phase.name!r}: probe at step {step}: regress watches {phase.name!r}, whose score {told}"
                )
        return {phase.name: earlier[phase.name] for phase in self.watched}

    def _forgotten(self, scores: dict[str, float], evidence: dict[str, Any]) -> Decision | None:
        """Where a phase that this one watches lost too much, often enough in a row."""
        rule, here = self.phase.regress, self.phase.name
        if rule is None or not scores:
            return None
        drops = {name: self._levels[name] - score for name, score in scores.items()}
        for name, drop in drops.items():
            self._drops[name] = self._drops[name] + 1 if drop > rule.max_drop else 0
        evidence["drops"] = drops
        lost = [name for name in drops if self._drops[name] >= rule.patience]
        if not lost or self._regressions[here] >= rule.attempts:
            return None
        worst = max(lost, key=drops.__getitem__)
        self._regressions[here] += 1
        reason = (
            f"{worst} fell to {scores[worst]:.3f} from the {self._levels[worst]:.3f} that it was left with, by more than"
            f" {rule.max_drop:g}, in {rule.patience} probes in a row"
        )
        index = [phase.name for phase in self.config.phases].index(worst)
        return self._go(DecisionKind.REGRESS, index, "forgetting", reason, evidence)

    def _collapsed(self, verdict: CollapseVerdict) -> Decision:
        allowed, name = self.config.collapse.max_rollbacks, self.phase.name
        evidence = verdict.evidence | self._circumstances(self._last_step) | {"rollbacks": self._rollbacks[name]}
        if self._rollbacks[name] >= allowed:
            return self._end("collapse", f"{verdict.words}; rolled back {allowed} times already", evidence)
        self._rollbacks[name] += 1
        return Decision(DecisionKind.ROLL_BACK, name, verdict.words, evidence=evidence, to=name)

    def _circumstances(self, step: int) -> dict[str, Any]:
        reward = fmean(self._rewards) if self._rewards else None
        return {"step": step, "steps_in_phase": self._steps, "mean_training_reward": reward}

    def _stay(self, reason: str, evidence: dict[str, Any]) -> Decision:
        return Decision(DecisionKind.STAY, self.phase.name, reason, evidence=evidence, to=self.phase.name)

    def _leave(self, left_by: str, reason: str, evidence: dict[str, Any]) -> Decision:
        following = [index for index in self._trained if index > self._index]
        if following:
            return self._go(DecisionKind.ADVANCE, following[0], left_by, reason, evidence)
        return self._end(left_by, reason, evidence)

    def _go(self, kind: DecisionKind, index: int, left_by: str, reason: str, evidence: dict[str, Any]) -> Decision:
        name = self.phase.name
        if self._steps and self._detector.probes:
            self._levels[name] = median(probe.score for probe in self._detector.probes[-LEVEL_PROBES:])
        self._enter(index)
        self.held = False
        return Decision(kind, name, reason, left_by, evidence, to=self.phase.name)

    def _end(self, left_by: str, reason: str, evidence: dict[str, Any]) -> Decision:
        self.finished = True
        return Decision(DecisionKind.STOP, self.phase.name, reason, left_by, evidence)

    def _must_run(self, what: str) -> None:
        if self.finished:
            raise ValueError(f"curriculum: {what} after the last phase {self.phase.name!r} was left")
