"""Episodes for a person to read: what the model was asked, thought, searched, was shown, answered, and was paid for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medr3.observe.asked import Asked
from tasks.prompting import ALL_TAGS, THINK_CLOSE, THINK_OPEN
from trajectories.store import StoredStep, stored_steps

STEPS_READ = 12  # enough for early and late episodes of every phase of a long run without reading gigabytes
CHOICE_COLUMNS = ["phase", "correct", "reward"]
SHOWN_COLUMNS = [
    "phase", "group_id", "episode_id", "question_id", "source", "kind", "searches", "rewards", "turn_rewards", "reward", "answer",
    "correct", "finish", "text", "versions", "outcome", "reason", "trained_step", "temperature", "generate_s", "search_s",
    "token_ids", "segments",
]  # fmt: skip

AskedOf = Callable[[dict[str, Any]], Asked | None]  # what a row's episode was asked, where it is known

_TAG = re.compile("(" + "|".join(re.escape(tag) for tag in ALL_TAGS) + ")")
_BLOCKS = {"think": "thinking", "search": "search", "call": "call", "document": "document", "answer": "answer"}


def choose_episodes(run_folder: Path) -> list[tuple[StoredStep, dict[str, Any]]]:
    """From steps all over the run, oldest first: of each phase in a step the best-paid right episode and a wrong one."""
    chosen: list[tuple[StoredStep, dict[str, Any]]] = []
    for stored in _spread(stored_steps(run_folder / "trajectories")):
        columns = stored.read(CHOICE_COLUMNS).to_pydict()
        best: dict[tuple[str, bool], tuple[float, int]] = {}
        for i, (phase, correct, reward) in enumerate(zip(*(columns[name] for name in CHOICE_COLUMNS), strict=True)):
            if (phase, correct) not in best or reward > best[phase, correct][0]:
                best[phase, correct] = (reward, i)
        if best:
            rows = stored.read(SHOWN_COLUMNS)
            chosen += [(stored, rows.slice(i, 1).to_pylist()[0]) for _, i in best.values()]
    return chosen


def _spread(steps: list[StoredStep]) -> list[StoredStep]:
    """Some steps from all over the run, always with the newest, oldest first."""
    if len(steps) <= STEPS_READ:
        return steps
    return [steps[round(i * (len(steps) - 1) / (STEPS_READ - 1))] for i in range(STEPS_READ)]


def brief(step: int, row: dict[str, Any], searches: int) -> dict[str, Any]:
    """The line by which a person chooses an episode."""
    names = ("phase", "source", "kind", "group_id", "episode_id", "question_id", "finish", "outcome")
    return {name: row[name] for name in names} | {
        "step": step, "correct": row["correct"], "reward": round(row["reward"], 3), "searches": searches,
    }  # fmt: skip


def episode_view(row: dict[str, Any], asked_of: AskedOf) -> dict[str, Any]:
    """All of one episode, cut into turns, as the page's script takes it."""
    asked = asked_of(row)
    return {
        "question": None if asked is None else asked._asdict(),
        "answer": row["answer"],
        "versions": sorted({f"{span['generation']}.{span['number']}" for span in row["versions"]}),
        "temperature": round(row["temperature"], 3),
        "generate_s": round(row["generate_s"], 2),
        "search_s": round(row["search_s"], 2),
        "reason": row.get("reason", ""),
        "turns": list(_turns(row)),
        "rewards": [[part["name"], round(part["value"], 4), round(part["weight"], 4)] for part in row["rewards"]],
        "total": round(row["reward"], 4),
    }


def _turns(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A turn is what the model wrote and what it was shown for it; with the rewards that were credited to it."""
    searches = iter(row["searches"])  # one for each search that the model wrote and that was made
    turns: list[list[dict[str, Any]]] = [[]]
    for block in blocks(row["text"], row["searches"]):
        if turns[-1] and turns[-1][-1]["kind"] == "document" and block.kind != "document":
            turns.append([])
        note = search_note(next(searches, None)) if block.kind in ("search", "call") else ""
        turns[-1].append(
            {"kind": block.kind, "text": block.text, "document": block.document, "level": block.level, "note": note}
        )
    last = max([len(turns) - 1, *(part["turn"] for part in row["turn_rewards"])])
    for number in range(last + 1):
        rewards = [[part["name"], round(part["value"], 4)] for part in row["turn_rewards"] if part["turn"] == number]
        yield {"blocks": turns[number] if number < len(turns) else [], "rewards": rewards}


def search_note(search: dict[str, Any] | None) -> str:
    """How a search went, in a few words."""
    if search is None:
        return ""
    flags = [word for word in ("cached", "degraded") if search[word]]
    tool = [] if search["tool"] in (None, "search") else [search["tool"]]  # None: recorded before there were tools
    said = [*tool, f"{len(search['document_ids'])} documents", f"{search['latency_ms']:.0f} ms", *flags]
    return ", ".join(said)


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
