"""When the phase changes: held-out probes go to the controller, and what it decides is written down with its reason."""

from __future__ import annotations

from curriculum.controller import Decision, DecisionKind
from medr3.evaluation.heldout import Examiner
from medr3.run.state import RunState
from trajectories.events import EventKind


class Deciding:
    """Probes where one is due. The questions that decide are never those that are reported."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._examiner = Examiner(state.pool, state.config, state.universe)

    async def enter(self) -> None:
        """Before the first step: the cold start's report, and the entry probe of the first phase."""
        state = self._state
        if not state.progress.heldout_by_phase:
            await self._report("cold_start")
            state.journal.events.append(EventKind.PHASE_ENTERED, phase=state.controller.phase.name, step=state.progress.step)
        await self.decide()

    async def decide(self) -> Decision | None:
        """The decision on the step that was just made, if a probe was due; the entry of a new phase is probed at once."""
        state, first = self._state, None
        while state.controller.should_probe():
            phase, step = state.controller.phase, state.progress.step
            with state.watchdog.stage("probe"):
                score = await self._examiner.probe(phase)
            state.journal.events.append(
                EventKind.PROBE, phase=phase.name, step=step, score=score.accuracy, n=score.n,
                strong_evidence=score.strong_evidence, by_kind=score.by_kind, finishes=score.finishes,
            )  # fmt: skip
            state.progress.probed(phase.name, score.accuracy)
            decision = state.controller.probe(step, score.accuracy, score.n)
            first = first or decision
            if decision.kind is not DecisionKind.STAY:
                await self._leave(decision)
        return first

    async def _leave(self, decision: Decision) -> None:
        state, step = self._state, self._state.progress.step
        state.journal.events.append(
            EventKind.PHASE_LEFT, phase=decision.phase, step=step, left_by=decision.left_by, reason=decision.reason
        )
        state.progress.phase_left(decision)
        await self._report(decision.phase)
        if decision.kind is DecisionKind.ADVANCE:
            state.journal.events.append(EventKind.PHASE_ENTERED, phase=state.controller.phase.name, step=step)

    async def _report(self, stage: str) -> None:
        """Held-out accuracy in every phase's own setting; the first and the last report close the book as well."""
        state = self._state
        closed_book = stage == "cold_start" or state.controller.finished
        with state.watchdog.stage("report"):
            for phase in state.config.curriculum.phases:
                score = await self._examiner.report(phase)
                without = await self._examiner.report(phase, retrieval=False) if closed_book and phase.retrieval else None
                state.progress.reported(stage, phase.name, score, without)
                state.watchdog.progress(f"{stage} was measured on {phase.name}")
        shown = ", ".join(f"{phase} {cell['accuracy']:.3f}" for phase, cell in state.progress.heldout_by_phase[stage].items())
        state.journal.say(f"held-out after {stage}: {shown}")
