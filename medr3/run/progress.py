"""How far a run has come: all that the summary tells and that is no other object's state. Part of the manifest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from curriculum.controller import Decision
from medr3.evaluation.heldout import Score
from medr3.evaluation.heldout_file import HeldOut


@dataclass
class Progress:
    """Sums over the surviving lineage; a resume goes on with them, so a summary speaks of the whole run.

    Example:
        >>> progress = Progress()
        >>> progress.new_group_id(), progress.new_group_id()
        ('g0000001', 'g0000002')
    """

    step: int = 0
    groups: int = 0  # admitted so far; names the next one
    entered_at_step: int = 0
    model_tokens: int = 0
    rollout_s: float = 0.0  # wall time of the steps, probes and reports excluded
    wall_s: float = 0.0  # of earlier processes of this run
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, of earlier processes
    last_probe: dict[str, dict[str, float]] = field(default_factory=dict)  # by phase: step and score
    heldout_by_phase: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # steps that were taken back, and why
    _started: float = field(default_factory=time.monotonic)

    def new_group_id(self) -> str:
        """Group ids count up; after a resume the numbers behind the manifest are given out again, as their groups were rolled back."""
        self.groups += 1
        return f"g{self.groups:07d}"

    def probed(self, phase: str, score: float, earlier: Mapping[str, float] | None = None) -> None:
        """The score by which a phase's checkpoints are told from each other; `earlier` are those of watched phases."""
        watched = {f"earlier/{name}": accuracy for name, accuracy in (earlier or {}).items()}
        self.last_probe[phase] = {"step": self.step, "score": score, **watched}

    def probed_at(self, step: int, phase: str) -> dict[str, float]:
        """The metrics of a probe, if there was one after this step."""
        last = self.last_probe.get(phase)
        if not last or last["step"] != step:
            return {}
        watched = {f"heldout/{name}": score for name, score in last.items() if name.startswith("earlier/")}
        return {"heldout/accuracy": last["score"], **watched}

    def stepped(self, step: int, model_tokens: int, seconds: float) -> None:
        """A learner step was made; `seconds` are the wall time that it took."""
        self.step = step
        self.model_tokens += model_tokens
        self.rollout_s += seconds

    def reported(self, stage: str, phase: str, score: Score, without: Score | None) -> dict[str, Any]:
        """A stage's held-out score in one phase's setting; returns what the summary says of it."""
        cell = {
            "accuracy": score.accuracy, "n": score.n, "by_kind": score.by_kind, "strong_evidence": score.strong_evidence,
            "disputes": score.rested._asdict(), "searches": score.searches, "finishes": score.finishes,
            "without_retrieval": None if without is None else without.accuracy,
        }  # fmt: skip
        self.heldout_by_phase.setdefault(stage, {})[phase] = cell
        return cell

    def recover(self, reports: Iterable[HeldOut]) -> None:
        """Takes over the reports of phases that were left whose numbers came after the manifest."""
        missing = self.unreported()
        for report in reports:
            if report.stage in missing and report.cell is not None:
                self.heldout_by_phase.setdefault(report.stage, {})[report.phase] = report.cell

    def unreported(self) -> list[str]:
        """Phases that were left and whose report never came."""
        return [phase["name"] for phase in self.phases if phase["name"] not in self.heldout_by_phase]

    def newest_report(self) -> dict[str, float]:
        """The last report's scores as metrics, by the phase whose questions they are; nothing before the first."""
        cells = list(self.heldout_by_phase.values())[-1] if self.heldout_by_phase else {}
        scores = {f"heldout/report/{phase}": cell["accuracy"] for phase, cell in cells.items()}
        closed = {phase: cell["without_retrieval"] for phase, cell in cells.items()}
        return scores | {f"heldout/closed_book/{phase}": score for phase, score in closed.items() if score is not None}

    def phase_left(self, decision: Decision) -> None:
        self.phases.append(
            {
                "name": decision.phase, "steps": self.step - self.entered_at_step, "left_by": decision.left_by,
                "evidence": {"reason": decision.reason, **decision.evidence},
            }
        )  # fmt: skip
        self.entered_at_step = self.step

    @property
    def heldout(self) -> dict[str, float]:
        """Accuracy over the whole held-out mixture after each stage."""
        return {
            stage: sum(cell["accuracy"] * cell["n"] for cell in cells.values()) / sum(cell["n"] for cell in cells.values())
            for stage, cells in self.heldout_by_phase.items()
        }

    def elapsed(self) -> float:
        """Wall time of the run, its earlier processes included."""
        return self.wall_s + time.monotonic() - self._started

    def stage_seconds(self, now: dict[str, float]) -> dict[str, float]:
        """Seconds by stage, earlier processes included."""
        return {name: self.seconds.get(name, 0.0) + now.get(name, 0.0) for name in {**self.seconds, **now}}

    def snapshot(self, seconds: dict[str, float]) -> dict[str, Any]:
        """JSON for the manifest."""
        known = asdict(self) | {"wall_s": self.elapsed(), "seconds": self.stage_seconds(seconds)}
        del known["_started"]
        return known

    @classmethod
    def restored(cls, snapshot: dict[str, Any]) -> Progress:
        return cls(**snapshot)
