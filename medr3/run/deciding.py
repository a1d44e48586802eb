"""When the phase changes: what a step showed goes to the controller, and what it decides is written down and carried out.

::

    after a step ─▶ collapse? ─▶ a person's word? ─▶ budget used? ─▶ probes that are due ─▶ the phase is left:
                                                                      report ▶ old groups, moments, reference by rule ▶ entered
"""

from __future__ import annotations

from curriculum.collapse import Health
from curriculum.config import PhaseConfig
from curriculum.controller import Decision, DecisionKind
from medr3.evaluation.heldout import Examiner
from medr3.run.control import ControlRefused, read_control
from medr3.run.feed import Feed
from medr3.run.reporting import report
from medr3.run.state import RunState
from trajectories.events import EventKind


class TrainingCollapsed(Exception):
    """The policy fell apart and may not be rolled back again; the text is the controller's reason."""


class Deciding:
    """Probes where one is due. The questions that decide are never those that are reported."""

    def __init__(self, state: RunState, feed: Feed) -> None:
        self._state, self._feed = state, feed
        self._examiner = Examiner(state.pool, state.config, state.universe)
        self._warned = False

    async def enter(self) -> None:
        """Before the first step: the cold start's report, and the entry probe of the first phase."""
        state = self._state
        if not state.progress.heldout_by_phase:
            await report(state, self._examiner, "cold_start")
            state.journal.events.append(EventKind.PHASE_ENTERED, phase=state.controller.phase.name, step=state.progress.step)
        for stage in state.progress.unreported():
            state.journal.say(f"warning: no held-out report of {stage}: the run ended while it was measured")
        await self._probe()

    async def after_step(self, step: int, metrics: dict[str, float]) -> Decision | None:
        """The first decision on the step that was just made; whatever it changes is in effect when this returns."""
        state = self._state
        decision = state.controller.observe(step, metrics["reward/mean"], metrics)
        self._warn()
        decision = decision or self._asked(step) or self._budget(step)
        if decision is None or decision.kind is DecisionKind.STAY:
            return await self._probe()
        if decision.kind is not DecisionKind.ROLL_BACK and decision.left_by != "collapse":
            await self._leave(decision)
            await self._probe()  # the phase that is on now, by its entry rule
        return decision

    def _asked(self, step: int) -> Decision | None:
        """What a person said, by `medr3 phase`."""
        state = self._state
        try:
            control = read_control(state.config.run.folder)
        except ControlRefused as error:
            state.journal.say(f"warning: {error}")
            return None
        if control is None:
            return None
        decision = state.controller.override(control.command, step)
        state.journal.say(f"phase {decision.phase}: {decision.reason}")
        return decision

    def _budget(self, step: int) -> Decision | None:
        budget, used = self._state.config.run.token_budget, self._state.progress.model_tokens
        if budget is None or used < budget:
            return None
        return self._state.controller.stop("token_budget", f"{used:,} of {budget:,} model tokens are used", step)

    async def _probe(self) -> Decision | None:
        """The decision of the probe that was due, if any; the entry of a new phase is probed at once."""
        state, first = self._state, None
        while state.controller.should_probe():
            phase, step = state.controller.phase, state.progress.step
            with state.watchdog.stage("probe"):
                score = await self._examiner.probe(phase)
                earlier = {watched.name: (await self._examiner.probe(watched)).accuracy for watched in state.controller.watched}
            state.journal.events.append(
                EventKind.PROBE, phase=phase.name, step=step, score=score.accuracy, n=score.n,
                strong_evidence=score.strong_evidence, by_kind=score.by_kind, finishes=score.finishes, earlier=earlier,
            )  # fmt: skip
            state.progress.probed(phase.name, score.accuracy, earlier)
            decision = state.controller.probe(step, score.accuracy, score.n, earlier=earlier)
            first = first or decision
            if decision.kind is not DecisionKind.STAY:
                await self._leave(decision)
        return first

    async def _leave(self, decision: Decision) -> None:
        state, step = self._state, self._state.progress.step
        state.journal.events.append(
            EventKind.PHASE_LEFT,
            phase=decision.phase,
            step=step,
            left_by=decision.left_by,
            reason=decision.reason,
            to=decision.to,
        )
        state.progress.phase_left(decision)
        await report(state, self._examiner, decision.phase)
        if decision.to:
            await self._enter(state.controller.phase)

    async def _enter(self, phase: PhaseConfig) -> None:
        """The new phase's rules for what the old one left behind."""
        state, rules = self._state, phase.on_entry
        if rules.old_groups == "drop":
            groups = map(state.ledger.group, state.ledger.open_ids())
            self._feed.give_up([group.group_id for group in groups if group.phase != phase.name], "old phase")
        await state.learner.new_phase(
            reset_optimizer=rules.optimizer == "reset", refresh_reference=rules.reference == "refresh"
        )  # fmt: skip
        state.journal.events.append(EventKind.PHASE_ENTERED, phase=phase.name, step=state.progress.step)

    def _warn(self) -> None:
        """Says once when a collapse threatens, and once when it is over."""
        health = self._state.controller.health
        words = health.words if health is not None and health.health is not Health.HEALTHY else ""
        if bool(words) != self._warned:
            self._state.journal.say(f"warning: {words}" if words else "healthy again")
        self._warned = bool(words)
