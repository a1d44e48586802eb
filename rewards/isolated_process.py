"""The process that a user's own rewards run in: one JSON object per line comes in, one goes out. It may be killed at any time."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from rewards.external import call, load
from rewards.findings import Findings
from tasks.questions import Question
from trajectories.schema import Episode

LONGEST_TEXT = 500  # of a reason or an error: it is read by a person and counted as a metric's cause
ALARM_AFTER_S = 2.0  # past the deadline, by when a living parent has killed this process
PARENT_POLL_S = 0.5

_EPISODE, _FINDINGS = TypeAdapter(Episode), TypeAdapter(Findings)


def serve(connection: socket.socket) -> None:
    """Answers until the other side is closed."""
    functions: dict[str, Callable[..., Any]] = {}
    with connection.makefile("rb") as lines:
        for line in lines:
            connection.sendall(json.dumps(_answer(json.loads(line), functions)).encode() + b"\n")


def _answer(request: dict[str, Any], functions: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    # The default action of this signal ends the process even where the reward lets no other thread run, `_end_with` included.
    signal.setitimer(signal.ITIMER_REAL, request["deadline_s"] + ALARM_AFTER_S)
    try:
        path = request["reward"]
        if path not in functions:
            functions[path] = load(path)
        return _score(functions[path], request) if "question" in request else {}
    except Exception as error:  # whatever a reward raises is its sample's loss, and nobody else's
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return {"error": " ".join(text.split())[:LONGEST_TEXT]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _score(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    question = Question.model_validate(request["question"])
    episode = _EPISODE.validate_python(request["episode"])
    findings = _FINDINGS.validate_python(request["findings"])
    earned = call(function, request["style"], request["arguments"], question, episode, findings)
    return {"value": earned.value, "turns": dict(earned.turns), "reason": str(earned.reason)[:LONGEST_TEXT]}


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    _end_group()


def _end_group() -> None:
    """Ends this process and all that rewards started: it was started as the leader of a group of its own."""
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serve(socket.socket(fileno=int(sys.argv[1])))
    _end_group()
