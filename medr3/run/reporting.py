"""Held-out reports of the whole plan: measured here and now by the training engines, or meanwhile by engines of their own."""

from __future__ import annotations

from medr3.evaluation.background import Report
from medr3.evaluation.heldout import Examiner
from medr3.evaluation.heldout_file import append_heldout
from medr3.run.journal import Journal
from medr3.run.progress import Progress
from medr3.run.state import RunState


async def report(state: RunState, examiner: Examiner, stage: str) -> None:
    """Held-out accuracy in every phase's own setting; the first and the last report close the book as well."""
    closed_book = stage == "cold_start" or state.controller.finished
    with state.watchdog.stage("report"):
        if state.reports is not None:
            await state.reports.order(stage, state.publication, closed_book=closed_book)
            return
        measured = Report(stage, state.version)
        for phase in state.config.curriculum.phases:
            measured.scores[phase.name] = await examiner.report(phase)
            if closed_book and phase.retrieval:
                measured.without_retrieval[phase.name] = await examiner.report(phase, retrieval=False)
            state.watchdog.progress(f"{stage} was measured on {phase.name}")
        deliver(state.progress, state.journal, measured)


def deliver(progress: Progress, journal: Journal, measured: Report) -> None:
    """Writes a report down; one that failed is said, and the run goes on."""
    if measured.failure:
        journal.say(f"warning: no held-out report of {measured.stage}, version {measured.version}: {measured.failure}")
        return
    for phase, score in measured.scores.items():
        cell = progress.reported(measured.stage, phase, score, measured.without_retrieval.get(phase))
        append_heldout(journal.folder, measured.stage, phase, score.correct, cell)
    shown = ", ".join(f"{phase} {score.accuracy:.3f}" for phase, score in measured.scores.items())
    journal.say(f"held-out after {measured.stage}: {shown}")
