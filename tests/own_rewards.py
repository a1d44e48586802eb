"""Rewards as a user of this system writes them: good ones, and every way to go wrong. They run in a process of their own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from rewards.earned import Earned
from rewards.findings import Findings
from tasks.questions import Question
from trajectories.schema import Episode

_CALLS: list[str] = []


def brevity(question: Question, episode: Episode, findings: Findings, *, longest: int = 100) -> Earned:
    """1 for an answer of no more than `longest` characters, less for a longer one."""
    return Earned(min(1.0, longest / max(1, len(episode.answer))), reason=f"{len(episode.answer)} characters")


def first_search(question: Question, episode: Episode, findings: Findings) -> Earned:
    """1 where the model searched, all of it owed to the first search."""
    turns = {search.turn: 1.0 for search in episode.searches[:1]}
    return Earned(float(bool(turns)), turns)


def sees_findings(question: Question, episode: Episode, findings: Findings) -> float:
    return findings.relevance.get(3, 0.0) + len(findings.graph or ())


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> dict[str, Any]:
    """As written for verl: the gold answer stands in the response."""
    assert data_source and extra_info is not None and extra_info["gold"] == ground_truth
    return {"score": 1.0 if ground_truth in solution_str else 0.0, "acc": 1}


def hangs_on_bad_answers(question: Question, episode: Episode, findings: Findings) -> float:
    while episode.answer == "hang":
        pass
    if episode.answer == "exit":
        os._exit(7)
    if episode.answer == "raise":
        raise RuntimeError("on\ntwo lines")
    return 1.0


def outlives_its_alarm(question: Question, episode: Episode, findings: Findings) -> float:
    """Starts a process, uses the alarm for itself, and hangs. The answer is the file that the process's id is written to."""
    started = subprocess.Popen(["sleep", "600"])
    signal.alarm(0)
    Path(episode.answer).write_text(str(started.pid))
    time.sleep(600)
    return 0.0


def pid(question: Question, episode: Episode, findings: Findings) -> float:
    return float(os.getpid())


def not_a_number(question: Question, episode: Episode, findings: Findings) -> float:
    return float("nan") if episode.answer == "nan" else 0.0


def words(question: Question, episode: Episode, findings: Findings) -> str:
    return "very good"


def noisy(question: Question, episode: Episode, findings: Findings) -> float:
    print("a reward may print")
    return random.SystemRandom().random()


def counts_its_calls(question: Question, episode: Episode, findings: Findings) -> float:
    _CALLS.append(episode.answer)
    return float(len(_CALLS))


def torn(question: Question, episode: Episode, findings: Findings) -> Earned:
    return Earned(1.0, {0: 0.25})
