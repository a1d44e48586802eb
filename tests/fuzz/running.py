"""Runs cases in a process that may die: the number of the case lies in a file, so that a crash in C code has its case too."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import mmap
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.fuzz.target import Broken, Target

CPU_S = 2.0  # of one case
WALL_S = 60.0  # of one case: who sleeps uses no processor; a busy machine may take its time
MEMORY_BYTES = 12 << 30  # of address space, most of which libraries reserve and never touch
SHRINK_TRIES = 300
NOT_BEGUN = b"\xff" * 8
ROOT = Path(__file__).parents[2]
REGRESSIONS = Path(__file__).parent / "regressions"


class TooSlow(BaseException):
    """No `except Exception` of a reader catches it."""


@dataclass
class Failure:
    """One way in which a target failed; further cases that fail at the same place are counted only."""

    target: str
    number: int
    signature: str
    said: str
    case: str  # hexadecimal, shrunk
    times: int = 1


@dataclass
class Tally:
    """What became of a target's cases."""

    target: str
    cases: int = 0
    refused: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def add(self, part: Tally) -> None:
        self.cases += part.cases
        self.refused += part.refused
        self.cpu_s += part.cpu_s
        self.slowest_s = max(self.slowest_s, part.slowest_s)
        known = {failure.signature: failure for failure in self.failures}
        for failure in part.failures:
            if failure.signature in known:
                known[failure.signature].times += failure.times
            else:
                self.failures.append(failure)


@contextmanager
def bounded() -> Iterator[None]:
    """Two seconds of processor time, and an end to waiting."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {CPU_S:g} s of processor time" if signum == signal.SIGPROF else f"more than {WALL_S:g} s")

    before = [signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def tried(target: Target, case: bytes) -> tuple[str, str, str]:
    """The outcome of a case; where it failed, where that was and what was said."""
    try:
        with bounded():
            return target.outcome(case), "", ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "failed", _signature(error), f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _signature(error: BaseException) -> str:
    """Its type and the innermost line of ours; of a broken promise, its words."""
    if isinstance(error, Broken):
        return "Broken: " + "".join(c for c in str(error) if not c.isdigit())[:40]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    named = [frame for frame in ours if "tests/fuzz" not in frame.filename] or ours or frames
    return f"{type(error).__name__} at {Path(named[-1].filename).name}:{named[-1].name}" if named else type(error).__name__


def run_cases(target: Target, seed: int, start: int, count: int, mark: mmap.mmap | None = None) -> Tally:
    """Cases `start` to `start + count`; a failure is shrunk when its like is met first."""
    tally = Tally(target.name)
    known: dict[str, Failure] = {}
    target.warm()
    for number in range(start, start + count):
        if mark is not None:
            mark[:8] = number.to_bytes(8, "little")
        case = target.case(seed, number)
        began = time.process_time()
        outcome, signature, said = tried(target, case)
        spent = time.process_time() - began
        tally.cases += 1
        tally.cpu_s += spent
        tally.slowest_s = max(tally.slowest_s, spent)
        tally.refused += outcome == "refused"
        if outcome == "failed":
            if signature in known:
                known[signature].times += 1
            else:
                shrunk = case if signature.startswith("TooSlow") else shrink(target, case, signature)
                known[signature] = Failure(target.name, number, signature, said, shrunk.hex())
    tally.failures = list(known.values())
    return tally


def shrink(target: Target, case: bytes, signature: str) -> bytes:
    """A shorter case that fails in the same way: stretches are left out, large ones first."""
    tries = 0
    size = len(case) // 2
    while size and tries < SHRINK_TRIES:
        at = 0
        while at < len(case) and tries < SHRINK_TRIES:
            tries += 1
            shorter = case[:at] + case[at + size :]
            if tried(target, shorter)[1] == signature:
                case = shorter
            else:
                at += size
        size //= 2
    return case


def in_child(target: Target, seed: int, start: int, count: int, folder: Path) -> Tally:
    """A chunk in a process of its own. One that dies is a failure of the case that it was at, and the rest goes on behind it."""
    whole = Tally(target.name)
    end = start + count
    while start < end:
        mark, told, said = (folder / name for name in ("mark", "told", "said"))
        mark.write_bytes(NOT_BEGUN)
        if not (process := os.fork()):
            _child(target, seed, start, end - start, mark, told, said)
        _, status = os.waitpid(process, 0)
        if status == 0:
            last = json.loads(told.read_text())
            whole.add(Tally(**{**last, "failures": [Failure(**each) for each in last["failures"]]}))
            break
        if mark.read_bytes() == NOT_BEGUN:
            raise RuntimeError(f"{target.name} does not start: {said.read_text()[-2_000:]}")
        at = int.from_bytes(mark.read_bytes(), "little")
        why = f"died with {os.waitstatus_to_exitcode(status)}"
        last_words = " ".join(said.read_text(errors="replace").split())[-600:]
        whole.add(
            Tally(
                target.name, at - start + 1, failures=[Failure(target.name, at, why, last_words, target.case(seed, at).hex())]
            )
        )
        start = at + 1
    return whole


def _child(target: Target, seed: int, start: int, count: int, mark: Path, told: Path, said: Path) -> NoReturn:
    """Never comes back: threads of libraries may be at work."""
    code = 1
    try:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        faulthandler.enable()
        warnings.simplefilter("ignore")
        logging.disable()
        with mark.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            told.write_text(json.dumps(asdict(run_cases(target, seed, start, count, shared))))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def keep(failure: Failure) -> Path:
    """Pins a failure: tests/unit/test_fuzz.py runs every file below regressions/."""
    case = bytes.fromhex(failure.case)
    folder = REGRESSIONS / slug(failure.target)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(case).hexdigest()[:12]
    path.write_bytes(case)
    return path


def slug(name: str) -> str:
    """A target's name as the name of a folder."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
