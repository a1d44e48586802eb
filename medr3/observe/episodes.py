"""A few episodes for a person to read: what the model thought, searched, was shown, answered, and was paid for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.prompting import TAGS, THINK_CLOSE, THINK_OPEN

FILES_READ = 12  # of the newest: enough for late episodes of every phase of a long run without reading gigabytes
CHOICE_COLUMNS = ["phase", "correct", "reward"]
SHOWN_COLUMNS = [
    "phase", "episode_id", "question_id", "source", "kind", "searches", "rewards", "turn_rewards", "reward", "answer", "correct",
    "finish", "text", "versions",
]  # fmt: skip

_TAG = re.compile("(" + "|".join(re.escape(tag) for tag in TAGS) + ")")
_BLOCKS = {"think": "thinking", "search": "search", "document": "document", "answer": "answer"}


def choose_episodes(run_folder: Path, phases: list[str]) -> list[dict[str, Any]]:
    """Per phase the last best-paid right episode and the last wrong one."""
    files = sorted((run_folder / "trajectories").glob("**/*.parquet"), key=lambda path: (path.stat().st_mtime, path.name))
    files = _spread(files)
    best: dict[tuple[str, bool], tuple[float, Path, int]] = {}
    for path in files:
        columns = pq.read_table(path, columns=CHOICE_COLUMNS).to_pydict()
        for i, (phase, correct, reward) in enumerate(zip(*(columns[name] for name in CHOICE_COLUMNS), strict=True)):
            known = best.get((phase, correct))
            if known is None or not correct or reward >= known[0]:
                best[(phase, correct)] = (reward, path, i)
    order = [*phases, *sorted({phase for phase, _ in best} - set(phases))]
    chosen = [best[(phase, correct)] for phase in dict.fromkeys(order) for correct in (True, False) if (phase, correct) in best]
    return [pq.read_table(path, columns=SHOWN_COLUMNS).slice(i, 1).to_pylist()[0] for _, path, i in chosen]


def _spread(files: list[Path]) -> list[Path]:
    """Some files from all over the run, always with the newest, oldest first."""
    if len(files) <= FILES_READ:
        return files
    return [files[round(i * (len(files) - 1) / (FILES_READ - 1))] for i in range(FILES_READ)]


def episode_html(row: dict[str, Any]) -> str:
    """One episode as a folding card."""
    verdict = "right" if row["correct"] else "wrong"
    versions = sorted({f"{span['generation']}.{span['number']}" for span in row["versions"]})
    rewards = "".join(
        f"<li>{escape(part['name'])} <b>{part['value']:.2f}</b> × {part['weight']:g}</li>" for part in row["rewards"]
    ) + "".join(
        f"<li>turn {part['turn'] + 1}: {escape(part['name'])} <b>{part['value']:.2f}</b></li>" for part in row["turn_rewards"]
    )
    return (
        f'<details class="episode"><summary><span class="pill {verdict}">{verdict}</span> <b>{escape(row["phase"])}</b>'
        f" · {escape(row['source'])} · {escape(row['kind'])} · reward {row['reward']:.2f}</summary>"
        f'<p class="ids">question {escape(row["question_id"])} · episode {escape(row["episode_id"])}'
        f" · weights {escape(', '.join(versions))} · ended by {escape(row['finish'])}</p>"
        f"{''.join(_blocks(row['text'], row['searches']))}"
        f'<ul class="rewards">{rewards}</ul></details>'
    )


def _blocks(text: str, searches: list[dict[str, Any]]) -> Iterator[str]:
    """The response cut at its tags; a tag that is never closed still opens a block, so malformed episodes read as they are."""
    levels = [
        (document, level)
        for search in searches
        for document, level in zip(search["document_ids"], search["evidence_levels"], strict=True)
    ]
    kind, shown, thinking = "plain", 0, False
    for piece in _TAG.split(text):
        if _TAG.fullmatch(piece):
            thinking = thinking if piece not in (THINK_OPEN, THINK_CLOSE) else piece == THINK_OPEN
            kind = _BLOCKS[piece.strip("<>")] if not piece.startswith("</") else "thinking" if thinking else "plain"
        elif piece.strip():
            label = kind
            if kind == "document" and shown < len(levels):
                document, level = levels[shown]
                shown += 1
                label = f'document {escape(document)} <span class="pill level{level}">{_level(level)}</span>'
            heading = "" if kind == "plain" else f"<b>{label}</b> "
            yield f'<p class="block {kind}">{heading}{escape(piece.strip())}</p>'


def _level(level: int) -> str:
    """Evidence levels as medicine writes them, I the best."""
    return "level " + ("I", "II", "III", "IV", "V", "VI")[level - 1] if level else "level unknown"
