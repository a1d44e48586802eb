"""report.html: one self-contained page about one run. Nothing in it asks another machine for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medr3.errors import UserError
from medr3.observe.asked import AskedQuestions
from medr3.observe.episodes import brief, choose_episodes, episode_view
from medr3.observe.page import page
from medr3.observe.record import load_record
from medr3.observe.view import view_of


def write_report(run_folder: Path) -> Path:
    """Writes report.html into the run folder from what the run has left there so far."""
    view = view_of(load_record(run_folder), alive=is_alive(run_folder)) | {"episodes": sample(run_folder)}
    path = run_folder / "report.html"
    draft = path.with_suffix(".draft")
    draft.write_text(page(view, live=False), encoding="utf-8")
    draft.replace(path)
    return path


def sample(run_folder: Path) -> list[dict[str, Any]]:
    """Episodes from all over the run, newest first, each whole."""
    asked = AskedQuestions(run_folder)
    return [
        brief(stored.step, row, len(row["searches"])) | {"whole": episode_view(row, asked)}
        for stored, row in reversed(choose_episodes(run_folder))
    ]


def is_alive(run_folder: Path) -> bool | None:
    """Whether the run's process still lives; None where nobody here can tell."""
    from medr3.ops.local import run_status

    try:
        return run_status(run_folder).get("alive")
    except (UserError, ValueError):  # absent, or damaged: the events tell more
        return None
