"""The course of a run: what is prepared before the loop, and what is summed up behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from curriculum.controller import Controller
from medr3.config import RunConfig
from medr3.datasets import open_tasks
from medr3.errors import UserError
from medr3.evaluation.heldout_file import read_heldout
from medr3.evaluation.leakage import refuse_leaks
from medr3.observe.report import write_report
from medr3.observe.summary import closing_table
from medr3.observe.terminal import Terminal
from medr3.observe.tracker import Tracker
from medr3.redaction import redact_rows
from medr3.run.journal import Journal
from medr3.run.loop import TrainingLoop
from medr3.run.manifest import MANIFEST, Manifest, write_json
from medr3.run.mirroring import send_last
from medr3.run.progress import Progress
from medr3.run.recovery import Recovery, recover
from medr3.run.reporting import deliver
from medr3.run.resuming import next_generation
from medr3.run.rollback import roll_back
from medr3.run.sampler import QuestionSampler
from medr3.run.services import Services, connect_ray, index_hash, prepare_index, prepare_model
from medr3.run.snapshots import refuse_unknown_questions
from medr3.run.state import RunState
from medr3.run.watchdog import Watchdog
from tasks.world import Universe
from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER, audit
from trajectories.events import EventKind, EventLog, read_events
from trajectories.ledger import Ledger
from trajectories.lineage import surviving
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion
from trajectories.spool import read_whole_spool


class Course:
    """One process's part of a run. `training` is set while a stop can wait for the end of a step."""

    def __init__(
        self, config: RunConfig, manifest: Manifest | None, stop: asyncio.Event, on_ray_started: Callable[[], None]
    ) -> None:
        self.training = False
        self._on_ray_started = on_ray_started
        self._config, self._manifest, self._stop = config, manifest, stop
        self._watchdog = Watchdog(config.run.stall_timeout_s)
        self._progress = Progress.restored(manifest.progress) if manifest else Progress()
        self._generation = next_generation(config.run.folder, manifest)
        self._progress.recover(read_heldout(config.run.folder))

    async def run(self) -> int | None:
        """The exit code; None where the run was rolled back, and goes on from its manifest in a course of its own."""
        config, manifest, watchdog = self._config, self._manifest, self._watchdog
        universe = open_tasks(config)
        refuse_leaks(universe)
        if manifest is not None:
            refuse_unknown_questions(manifest, universe, config.run.folder / MANIFEST)
        journal = self._open_journal()
        terminal = self._terminal(journal)
        with ExitStack() as closing:  # each is closed, whatever a full disk lets another one say
            if terminal is not None:
                closing.callback(terminal.close)
            for open_file in (journal.store, journal.events, journal.tracker):
                closing.callback(open_file.close)
            journal.status(state="preparing", phase="", step=self._progress.step)
            with watchdog.stage("build index, start ray"):
                folder, ready = await self._prepare(universe)
                journal.tracker.join_ray()
            with watchdog.stage("cold start"):
                model = await prepare_model(config, universe, folder, journal.say)
                ready["model"] = time.time()
            version = WeightVersion(self._generation, self._progress.step)
            checkpoint = config.run.folder / manifest.checkpoint if manifest else None
            self._announce(journal, version)
            with watchdog.stage("start services"):
                services = await Services.start(
                    config,
                    universe,
                    folder,
                    model,
                    version,
                    checkpoint,
                    journal.ack,
                    journal.published,
                    partial(deliver, self._progress, journal),
                )
            journal.events.append(EventKind.SERVICES_READY, ready=ready | services.ready)
            try:
                state = self._state(services, universe, index_hash(folder), journal, version)
                self.training = True
                collapse = await TrainingLoop(state).run()
            finally:
                self.training = False
                with watchdog.stage("stop services"):
                    await services.stop()
            if collapse is not None:
                roll_back(state, collapse)
                return None
            self._sum_up(state)
            await send_last(config, journal.say)
            return 0

    async def _prepare(self, universe: Universe) -> tuple[Path, dict[str, float]]:
        """The index's folder, and when it and Ray were ready: Ray starts meanwhile, and is whole before a refused index ends it."""
        ready: dict[str, float] = {}
        connecting = asyncio.create_task(asyncio.to_thread(connect_ray, self._config))
        try:
            folder = await asyncio.to_thread(prepare_index, self._config, universe)
            _refuse_another_index(folder, self._manifest)
            ready["index"] = time.time()
        finally:
            await connecting
            self._on_ray_started()
        return folder, ready | {"ray": time.time()}

    def _terminal(self, journal: Journal) -> Terminal | None:
        """What is shown below the journal's lines, where a person sits in front of them."""
        config, progress = self._config, self._progress
        limits = {phase.name: phase.max_steps for phase in config.curriculum.phases}
        terminal = (
            Terminal.opened(config.run.name, limits, lambda: self._watchdog.current) if config.tracking.progress else None
        )
        if terminal is not None:
            journal.on_status = lambda fields: terminal.told(
                fields, progress.last_probe.get(fields.get("phase", "")), progress.entered_at_step
            )
        return terminal

    def _open_journal(self) -> Journal:
        config, manifest = self._config, self._manifest
        folder = config.run.folder
        tracker = Tracker(
            folder, config.tracking, name=config.run.name, settings=config.model_dump(mode="json"),
            tracker_id=manifest.tracker_id if manifest else "", resume_step=manifest.step if manifest else None,
        )  # fmt: skip
        recorder = Recorder(folder / TRAJECTORIES_FOLDER, generation=self._generation)
        redact = redact_rows if config.run.redact == "phi" else None
        return Journal(folder, EventLog(folder / "events.jsonl"), tracker, recorder, redact=redact)

    def _announce(self, journal: Journal, version: WeightVersion) -> None:
        config, manifest = self._config, self._manifest
        if manifest is None:
            journal.events.append(
                EventKind.RUN_STARTED, run_id=config.run.name, generation=1, seed=config.run.seed,
                max_staleness=config.rollout.max_staleness, config_hash=config.hash(),
            )  # fmt: skip
        else:
            journal.events.append(
                EventKind.RESUMED, generation=version.generation, step=manifest.step, position=manifest.events
            )
            origin = manifest.forked_from if version.generation == 1 else None
            began = f"forked from {origin.run_id}" if origin else "resumed"
            journal.say(f"{began} at step {manifest.step} in phase {manifest.controller['phase']}")
        journal.events.sync()  # a generation that was begun is never begun again

    def _state(self, services: Services, universe: Universe, index: str, journal: Journal, version: WeightVersion) -> RunState:
        config, manifest = self._config, self._manifest
        ledger = Ledger(config.ledger_rules())
        sampler = QuestionSampler(universe, config.run.seed)
        controller = Controller(config.curriculum)
        if manifest is not None:
            ledger.restore(manifest.ledger)
            sampler.restore(manifest.sampler)
            controller.restore(manifest.controller)
        return RunState(
            config=config, universe=universe, index_hash=index, pool=services.pool, learner=services.learner, journal=journal,
            ledger=ledger, sampler=sampler, controller=controller, progress=self._progress, watchdog=self._watchdog,
            version=version, publication=services.publication, reports=services.reports, stop=self._stop,
            checkpoints=manifest.checkpoints if manifest else [], recovery=self._recover(journal, version),
            forked_from=manifest.forked_from if manifest else None,
        )  # fmt: skip

    def _recover(self, journal: Journal, version: WeightVersion) -> Recovery:
        """What earlier processes rolled out and nobody trained; what of it is of no use is told by name."""
        manifest, folder = self._manifest, self._config.run.folder
        if manifest is None:
            return Recovery()
        journal.resumes_at = manifest.step
        lineage = surviving(read_events(folder / EVENTS_FILE).events)
        staleness = self._config.rollout.max_staleness
        spooled = read_whole_spool(folder / TRAJECTORIES_FOLDER)
        recovery = recover(spooled, lineage, manifest.ledger, manifest.step, version.generation, staleness)
        if recovery.groups:
            journal.say(f"{len(recovery.groups)} groups were rolled out already, and are not again where they are asked for")
        journal.discarded(recovery)
        return recovery

    def _sum_up(self, state: RunState) -> None:
        """The run's last words: summary, report, audit, closing table."""
        config, progress, journal = self._config, self._progress, state.journal
        finished = state.controller.finished
        journal.events.append(
            EventKind.STOPPED if finished else EventKind.PAUSED,
            step=progress.step,
            reason="the last phase was left" if finished else "asked to stop",
        )
        journal.status(state="finished" if finished else "stopped", phase=state.controller.phase.name, step=progress.step)
        if not finished:
            journal.say(f"stopped after step {progress.step}; the same command goes on from there")
            return
        counts = state.ledger.counts()
        summary = {
            "seed": config.run.seed,
            "wall_s": progress.elapsed(),
            "heldout": progress.heldout,
            "heldout_by_phase": progress.heldout_by_phase,
            "phases": progress.phases,
            "tokens_per_s": progress.model_tokens / progress.rollout_s if progress.rollout_s else 0.0,
            "groups": {
                "admitted": counts.admitted,
                "trained": counts.trained,
                "dropped": counts.dropped,
                "voided": counts.voided,
            },
            "max_age": max(state.ledger.ages, default=0),
            "time_by_stage": progress.stage_seconds(self._watchdog.seconds),
            "steps": progress.step,
            "model_tokens": progress.model_tokens,
            "rollbacks": progress.rollbacks,
        }
        write_json(config.run.folder / "summary.json", summary)
        report = write_report(config.run.folder)
        found = audit(config.run.folder)
        journal.say(closing_table(summary))
        for violation in found.violations:
            journal.say(f"audit: {violation}")
        journal.say(f"audit: {len(found.violations)} violations; report: {report}")


def _refuse_another_index(folder: Path, manifest: Manifest | None) -> None:
    """Rewards and answers are of one corpus; a run that found another would go on as if nothing had happened."""
    found = index_hash(folder)
    if manifest is not None and manifest.index_hash and manifest.index_hash != found:
        raise UserError(
            f"{folder}: is index {found[:12]}, and the run was trained with {manifest.index_hash[:12]}: put that one back, or begin"
            " another run from its weights with --fork and --new-index"
        )
