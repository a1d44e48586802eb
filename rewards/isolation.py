"""A user's own rewards in processes that can be killed: one that hangs, crashes or raises costs its sample and nothing else.

```
 run() ─▶ thread ─▶ RewardProcess.ask ── JSON line ──▶ rewards.isolated_process (spawned once, used again)
            └ past the deadline, or the process is gone: killed, `RewardFailed`; the next request starts a new process
```
Only JSON travels, never pickle. What ships with this system is trusted to end and runs where it is called.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, fields
from queue import SimpleQueue
from typing import Any

from rewards.config import RewardRecipe, RewardTerm
from rewards.earned import Earned
from rewards.findings import Findings
from tasks.questions import Question
from trajectories.schema import Episode

LOAD_S = 120.0  # a reward's module may import torch, and a busy machine may take a minute for it
PROCESSES = 2  # one that hangs leaves another to go on with
LONGEST_ANSWER = 1 << 20  # bytes; turns and a reason need a few hundred


class RewardFailed(Exception):
    """A user's own reward gave no usable value, for the reason that is its text. The sample leaves its group and is counted."""


class RewardProcess:
    """One process, started when first asked and replaced when it hangs or dies. Belongs to one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._loaded: set[str] = set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def load(self, term: RewardTerm) -> None:
        """Starts the process and imports the reward's module, where that has not happened; it has a deadline of its own."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._start()
        if term.name not in self._loaded:
            self._exchange(term.name, json.dumps({"reward": term.name, "deadline_s": LOAD_S}), LOAD_S)
            self._loaded.add(term.name)

    def ask(self, term: RewardTerm, sample: str) -> Earned:
        """The reward's value for a sample, which `as_json` wrote."""
        self.load(term)
        head = {"reward": term.name, "style": term.style, "arguments": term.arguments, "deadline_s": term.deadline_s}
        answer = self._exchange(term.name, f"{json.dumps(head)[:-1]}, {sample[1:]}", term.deadline_s)
        try:
            earned = Earned(answer["value"], {int(turn): share for turn, share in answer["turns"].items()}, answer["reason"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RewardFailed(f"{term.name} broke its process's protocol") from None
        if term.range and not term.range[0] <= earned.value <= term.range[1]:
            raise RewardFailed(f"{term.name} gave {earned.value:g}, outside its range {list(term.range)}")
        return earned

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process, self._connection = None, None
        self._loaded.clear()

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewards.isolated_process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),), env=environment, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _exchange(self, name: str, request: str, deadline_s: float) -> dict[str, Any]:
        assert self._connection is not None, "the process was started"
        end = time.monotonic() + deadline_s
        received = bytearray()
        try:
            self._connection.settimeout(deadline_s)
            self._connection.sendall(request.encode() + b"\n")
            while not received.endswith(b"\n"):
                self._connection.settimeout(max(1e-3, end - time.monotonic()))
                chunk = self._connection.recv(1 << 16)
                if not chunk or len(received) > LONGEST_ANSWER:
                    raise ConnectionError
                received += chunk
            answer: dict[str, Any] = json.loads(received)
        except TimeoutError:
            self.kill()
            raise RewardFailed(f"{name} took over {deadline_s:g} s and was killed") from None
        except (OSError, ValueError):
            self.kill()
            raise RewardFailed(f"{name} ended its process") from None
        if "error" in answer:
            raise RewardFailed(f"{name} failed: {answer['error']}")
        return answer


class IsolatedRewards:
    """A few reward processes and one thread for each; safe to use from many tasks at once."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="own-rewards")
        self._idle: SimpleQueue[RewardProcess] = SimpleQueue()
        self._all = [RewardProcess() for _ in range(processes)]
        for process in self._all:
            self._idle.put(process)

    async def run(self, recipe: RewardRecipe, question: Question, episode: Episode, findings: Findings) -> dict[str, Earned]:
        """The user's own rewards of a recipe for one episode, by name in the recipe; `RewardFailed` if any of them fails."""
        terms = [term for term in recipe.all_terms if term.is_own]
        if not terms:
            return {}
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, terms, question, episode, findings)

    def _run(self, terms: Iterable[RewardTerm], question: Question, episode: Episode, findings: Findings) -> dict[str, Earned]:
        sample = as_json(question, episode, findings)
        process = self._idle.get()
        try:
            return {term.key: process.ask(term, sample) for term in terms}
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends all processes; samples that wait are given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()


def as_json(question: Question, episode: Episode, findings: Findings) -> str:
    """A sample as a JSON object on one line."""
    row = {field.name: getattr(episode, field.name) for field in fields(episode)}  # asdict would copy every token
    sample = {"question": question.model_dump(mode="json"), "episode": row, "findings": asdict(findings)}
    return json.dumps(sample, default=asdict)
