"""A few episodes for a person to read: what the model thought, searched, was shown, answered, and was paid for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tasks.prompting import ALL_TAGS, THINK_CLOSE, THINK_OPEN
from trajectories.store import StoredStep, stored_steps

STEPS_READ = 12  # enough for late episodes of every phase of a long run without reading gigabytes
CHOICE_COLUMNS = ["phase", "correct", "reward"]
SHOWN_COLUMNS = [
    "phase", "episode_id", "question_id", "source", "kind", "searches", "rewards", "turn_rewards", "reward", "answer", "correct",
    "finish", "text", "versions",
]  # fmt: skip

_TAG = re.compile("(" + "|".join(re.escape(tag) for tag in ALL_TAGS) + ")")
_BLOCKS = {"think": "thinking", "search": "search", "call": "call", "document": "document", "answer": "answer"}


def choose_episodes(run_folder: Path, phases: list[str]) -> list[dict[str, Any]]:
    """Per phase the last best-paid right episode and the last wrong one."""
    best: dict[tuple[str, bool], tuple[float, StoredStep, int]] = {}
    for stored in _spread(stored_steps(run_folder / "trajectories")):
        columns = stored.read(CHOICE_COLUMNS).to_pydict()
        for i, (phase, correct, reward) in enumerate(zip(*(columns[name] for name in CHOICE_COLUMNS), strict=True)):
            known = best.get((phase, correct))
            if known is None or not correct or reward >= known[0]:
                best[(phase, correct)] = (reward, stored, i)
    order = [*phases, *sorted({phase for phase, _ in best} - set(phases))]
    chosen = [best[(phase, correct)] for phase in dict.fromkeys(order) for correct in (True, False) if (phase, correct) in best]
    return [stored.read(SHOWN_COLUMNS).slice(i, 1).to_pylist()[0] for _, stored, i in chosen]


def _spread(steps: list[StoredStep]) -> list[StoredStep]:
    """Some steps from all over the run, always with the newest, oldest first."""
    if len(steps) <= STEPS_READ:
        return steps
    return [steps[round(i * (len(steps) - 1) / (STEPS_READ - 1))] for i in range(STEPS_READ)]


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
        f"{''.join(map(_block_html, blocks(row['text'], row['searches'])))}"
        f'<ul class="rewards">{rewards}</ul></details>'
    )


class Block(NamedTuple):
    """A piece of a response: plain, thinking, search, document or answer. A document has its id, where the row knows it."""

    kind: str
    text: str
    document: str = ""
    level: int = 0


def blocks(text: str, searches: list[dict[str, Any]]) -> Iterator[Block]:
    """The response cut at its tags; a tag that is never closed still opens a block, so malformed episodes read as they are."""
    found = [shown for search in searches for shown in _shown(search)]
    kind, shown, thinking = "plain", 0, False
    for piece in _TAG.split(text):
        if _TAG.fullmatch(piece):
            thinking = thinking if piece not in (THINK_OPEN, THINK_CLOSE) else piece == THINK_OPEN
            kind = _BLOCKS[piece.strip("<>")] if not piece.startswith("</") else "thinking" if thinking else "plain"
        elif piece.strip():
            if kind == "document" and shown < len(found):
                yield Block(kind, piece.strip(), *found[shown])
                shown += 1
            else:
                yield Block(kind, piece.strip())


def _shown(search: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """For every document block of a search its document and level. What a tool says in its own words has neither."""
    yield from zip(search["document_ids"], search["evidence_levels"], strict=True)
    yield from [("", 0)] * (len(search["documents"]) - len(search["document_ids"]))


def level_name(level: int) -> str:
    """Evidence levels as medicine writes them, I the best."""
    return "level " + ("I", "II", "III", "IV", "V", "VI")[level - 1] if level else "level unknown"


def _block_html(block: Block) -> str:
    label = block.kind
    if block.document:
        label = f'document {escape(block.document)} <span class="pill level{block.level}">{level_name(block.level)}</span>'
    heading = "" if block.kind == "plain" else f"<b>{label}</b> "
    return f'<p class="block {block.kind}">{heading}{escape(block.text)}</p>'
