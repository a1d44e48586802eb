"""One run with its faults: waits for the moment of each, does it, starts a driver that ended again, and notes what happened."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from medr3.chaos.evidence import DriverLife, Injected, recovery_s
from medr3.chaos.faults import KINDS, NoTarget
from medr3.chaos.invariants import RESUMABLE
from medr3.chaos.plan import STARTED, Scheduled
from medr3.chaos.scene import Scene
from medr3.chaos.state import loaded_state, saved_state
from trajectories.events import Event, EventKind

POLL_S = 0.25
# Until a run trains, or ends after its last fault: a cold start and three reports, on a machine that others use as well.
PATIENCE_S = 900.0
MOST_STARTS = 4  # of the driver for one fault: a run that fails so often will not learn it
STARTS_TO_RECOVER = 3  # an engine or a whole run starts anew, while others of the machine may do so as well
TARGET_S = 10.0  # a process that is just being replaced is there again by then
Say = Callable[[str], None]


class RunFailed(Exception):
    """The run cannot go on; what is known of it is evidence all the same."""


class TooLate(RunFailed):
    """What was waited for did not happen in time."""


@dataclass
class Conductor:
    """From the first start of a run's driver to its last end."""

    scene: Scene
    say: Say
    usual_start_s: float = 0.0  # of the twin, on this machine as busy as it is
    lives: list[DriverLife] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)
    descriptors: list[tuple[int, int]] = field(default_factory=list)
    _began: float = 0.0
    _saved: tuple[int | None, str] = (None, "")  # what the driver that lives now was to load
    _doomed: bool = False  # the fault that is on takes the driver with it
    _over: bool = False

    def play(self, faults: list[Scheduled], *, stops: bool = False) -> None:
        """All faults in order; returns when the run has ended, or has paused when it was asked to."""
        self._start()
        for fault in faults:
            done = False
            while not done:
                self._await_moment(fault)
                if self._over:
                    return
                done = self._inject(fault)
        if stops:
            self.scene.ask_to_stop()
        self._until(lambda: self._over, PATIENCE_S, "the end of the run")

    def begin(self) -> None:
        """Starts the run, and waits until it trains."""
        self._start()
        self._until(lambda: bool(_trained(self.scene.events())), PATIENCE_S, "the first step")

    def watch_for(self, seconds: float) -> None:
        over = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= over, 2 * seconds, "time to pass")

    def stop(self) -> None:
        """Asks the run to pause, as SIGTERM does, and waits until it has."""
        self.scene.ask_to_stop()
        self._until(lambda: self._over, PATIENCE_S, "the end of a run that was asked to stop")

    def give_up(self) -> None:
        """The driver is ended here and now, which the evidence tells."""
        if self.scene.ended() is None:
            self.scene.end()
        if not self._over and (not self.lives or self.lives[-1].began != self._began):
            self._note_end(self.scene.ended() or 0, killed=False)

    # --- a fault

    def _await_moment(self, fault: Scheduled) -> None:
        starts = -1
        while self.scene.starts != starts and not self._over:  # a driver that ended within the delay: the new one trains first
            self._look_after_driver()
            starts = self.scene.starts
            if fault.after_event != STARTED:
                known = len(self.scene.events())
                self._until(
                    partial(self._is_time, fault, known), PATIENCE_S, f"the moment of fault {fault.number} ({fault.kind})"
                )
                starts = self.scene.starts
            over = time.monotonic() + fault.delay_s
            self._until(partial(_is_past, over), PATIENCE_S, "a delay")

    def _is_time(self, fault: Scheduled, known: int) -> bool:
        events = self.scene.events()
        trained = [event for event in _trained(events) if event.time > self._began]
        if not trained:  # before that, nothing of what may be hit is in use
            return False
        if fault.step is not None and trained[-1]["step"] < fault.step:
            return False
        entered = {event["phase"] for event in events if event.kind is EventKind.PHASE_ENTERED}
        if fault.phase is not None and fault.phase not in entered:
            return False
        return fault.after_event is None or any(event.kind == fault.after_event for event in events[known:])

    def _inject(self, fault: Scheduled) -> bool:
        """Whether it is dealt with; not, where the driver was about to end of an earlier fault and had nothing left to hit."""
        kind, starts = KINDS[fault.kind], self.scene.starts
        limit_s = max(kind.limit_s, STARTS_TO_RECOVER * self.usual_start_s)
        self._doomed = kind.ends_driver != "never"
        try:
            target = self._hit(fault)
        except (NoTarget, RuntimeError, subprocess.TimeoutExpired) as error:
            self._doomed = False
            if self.scene.ended() not in (None, 0):
                return False
            self.say(f"  fault {fault.number}, {fault.kind}: could not be done: {error}")
            return True
        self.say(f"  fault {fault.number}, {fault.kind}: {target}")
        if kind.ends_driver == "always":
            with suppress(TooLate):  # then it outlived what it was not asked to outlive
                self._until(lambda: self.scene.starts > starts, limit_s, f"the driver's end after {fault.kind}")
        at = self.scene.struck_at
        recovered = self._settled(at, limit_s) if fault.settle else None
        self._doomed = False
        self.faults.append(
            Injected(
                fault.number, fault.kind, target, at, kind.must, fault.settle, limit_s, driver_may_end=kind.ends_driver != "never",
                driver_ended=self.scene.starts > starts, recovered_s=recovered,
            )
        )  # fmt: skip
        if recovered is not None:
            self.say(f"    recovered after {recovered:.1f} s")
        return True

    def _hit(self, fault: Scheduled) -> str:
        until = time.monotonic() + TARGET_S
        while True:
            self.scene.struck_at = time.time()
            try:
                return KINDS[fault.kind].inject(self.scene, fault)
            except NoTarget:
                if time.monotonic() > until:
                    raise
                time.sleep(POLL_S)

    def _settled(self, at: float, limit_s: float) -> float | None:
        """How long it took until the run worked again; twice the limit is waited, so that a late recovery has a figure, too."""
        try:
            self._until(lambda: recovery_s(self.scene.events(), at) is not None, 2 * limit_s, "recovery")
        except TooLate:
            return None
        return recovery_s(self.scene.events(), at)

    # --- the driver

    def _start(self) -> None:
        self._began, self._saved = time.time(), saved_state(self.scene.run_folder)
        self.scene.start()

    def _until(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits, and starts a driver again that ended in between and said that this goes on; returns early where the run is over."""
        deadline, starts = time.monotonic() + seconds, self.scene.starts
        while not reached() and not self._over:
            self._look_after_driver()
            if self.scene.starts - starts > MOST_STARTS:
                raise RunFailed(f"waiting for {what}: the driver was started {MOST_STARTS} times more, and ended each time")
            if time.monotonic() > deadline:
                raise TooLate(f"{what}: not within {seconds:.0f} s")
            time.sleep(POLL_S)

    def _look_after_driver(self) -> None:
        code = self.scene.ended()
        if code is None:
            return
        self._note_end(code, killed=self._doomed)
        if code == 0:
            self._over = True
        elif code in RESUMABLE or self._doomed:
            self._start()
        else:
            last = (self.scene.said().strip().splitlines() or ["it said nothing"])[-1]
            raise RunFailed(f"the driver ended with {code}: {last}")

    def _note_end(self, code: int, *, killed: bool) -> None:
        (step, saved), events = self._saved, self.scene.events()
        self.lives.append(DriverLife(self._began, time.time(), code, killed, step, saved, loaded_state(events, self._began)))
        self.descriptors += self._descriptors(events)
        self.scene.end_beside()

    def _descriptors(self, events: list[Event]) -> list[tuple[int, int]]:
        """Of the driver that just ended: from its first trained step to its last."""
        steps = [event.time for event in _trained(events) if event.time > self._began]
        if not steps or self.scene.process is None:
            return []
        pid = self.scene.process.pid
        found = [each for each in self.scene.watcher.samples if each.pid == pid and steps[0] < each.at <= steps[-1]]
        return [(found[0].descriptors, found[-1].descriptors)] if len(found) > 1 else []


def _is_past(moment: float) -> bool:
    return time.monotonic() >= moment


def _trained(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind is EventKind.TRAINED]
