"""Recorded episodes in a terminal: one as a person would read it, or the last groups in a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medr3.observe.asked import Asked
from medr3.observe.episodes import blocks, level_name, search_note
from medr3.observe.plain import plain, plain_line
from trajectories.reading import UNKNOWN, Record
from trajectories.schema import Source

TABLE_COLUMNS = [
    "group_id", "question_id", "phase", "source", "outcome", "reason", "trained_step", "reward", "correct", "searches", "segments",
]  # fmt: skip
_STYLES = {"thinking": "", "search": "cyan", "document": "dim", "answer": "bold", "plain": ""}


class GroupLine(NamedTuple):
    """One group in the table."""

    group_id: str
    question_id: str
    phase: str
    source: str
    ended: str
    episodes: int
    reward: float
    correct: int
    searches: float
    tokens: float

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


def last_groups(record: Record, count: int) -> list[GroupLine]:
    """The newest groups, newest first: those of the spool, then those of the last steps."""
    found: list[GroupLine] = []
    for recorded in record.read(TABLE_COLUMNS, newest_first=True):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in recorded.rows.to_pylist():
            groups.setdefault(row["group_id"], []).append(row)
        found += [_line(rows) for rows in reversed(groups.values())]
        if len(found) >= count:
            break
    return found[:count]


def _line(rows: list[dict[str, Any]]) -> GroupLine:
    first, n = rows[0], len(rows)
    return GroupLine(
        first["group_id"], first["question_id"], first["phase"], first["source"], _ended(first), n,
        sum(row["reward"] for row in rows) / n, sum(row["correct"] for row in rows), sum(len(row["searches"]) for row in rows) / n,
        sum(tokens_of(row["segments"], Source.MODEL) for row in rows) / n,
    )  # fmt: skip


def tokens_of(segments: Iterable[dict[str, Any]], source: Source) -> int:
    return sum(segment["end"] - segment["start"] for segment in segments if segment["source"] == source)


def group_table(lines: list[GroupLine]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("group", "question", "phase", "source", "ended"):
        table.add_column(name, no_wrap=True)
    for name in ("episodes", "reward", "correct", "searches", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        cells = [line.group_id, line.question_id, line.phase, line.source, line.ended, f"{line.episodes}", f"{line.reward:.3f}"]
        cells += [f"{line.correct}", f"{line.searches:.1f}", f"{line.tokens:.0f}"]
        table.add_row(*(Text(plain_line(cell)) for cell in cells))
    return table


def show_episode(console: Console, row: dict[str, Any], asked: Asked | None) -> None:
    """Everything that is known of one episode, in the order in which it happened."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(plain(text), style=style), soft_wrap=True)

    for line in _head(row):
        say(line, "dim")
    say("")
    say("question", "bold")
    say("  its text is in none of the run's worlds" if asked is None else _indented(asked.text))
    if asked is not None:
        for letter, option in asked.options.items():
            say(f"  {letter}: {option}")
        if asked.gold:  # otherwise the prompt is all that is known
            say(f"  right: {asked.gold}")
    searches = iter(row["searches"])  # one for each search that the model wrote and that was made
    for block in blocks(row["text"], row["searches"]):
        label = f"{block.kind} {block.document}, {level_name(block.level)}" if block.document else block.kind
        if block.kind == "search":
            note = search_note(next(searches, None))
            label = f"search ({note})" if note else "search"
        say("")
        say(label, "bold")
        say(_indented(block.text), _STYLES[block.kind])
    say("")
    for line in _paid(row):
        say(line)


def _head(row: dict[str, Any]) -> list[str]:
    tokens = {source: tokens_of(row["segments"], source) for source in Source}
    versions = sorted({(span["generation"], span["number"]) for span in row["versions"]})
    under = ", ".join(f"{generation}.{number}" for generation, number in versions) or "unknown"
    age = ""
    if row["learner_number"] != UNKNOWN and versions:
        ages = sorted({row["learner_number"] - number for _, number in versions})
        learner = f"{row['learner_generation']}.{row['learner_number']}"
        age = f", {' and '.join(map(str, ages))} versions old when the learner was at {learner}"
    made = f"{row['generate_s']:.2f} s generating, {row['search_s']:.2f} s searching"
    counted = f"{tokens[Source.PROMPT]} prompt, {tokens[Source.MODEL]} model, {tokens[Source.DOCUMENT]} documents"
    return [
        f"episode {row['episode_id']} of group {row['group_id']}, attempt {row['attempt']}, question {row['question_id']}",
        f"phase {row['phase']}, {row['source']}, {row['kind']}; {_ended(row)}; the episode ended by {row['finish'] or '?'}",
        f"weights {under}{age}; temperature {row['temperature']:g}",
        f"tokens: {counted}; {made}",
    ]


def _ended(row: dict[str, Any]) -> str:
    step = f" in step {row['trained_step']}" if row["trained_step"] != UNKNOWN else ""
    return f"{row['outcome']}{step}" + (f": {row['reason']}" if row["reason"] else "")


def _paid(row: dict[str, Any]) -> list[str]:
    parts = row["rewards"]
    wide = max((len(plain_line(part["name"])) for part in parts), default=5)
    lines = [f"answer {'right' if row['correct'] else 'wrong'}: {row['answer']}", ""]
    lines += [f"  {'reward':<{wide}}   value   weight"] if parts else []
    lines += [f"  {plain_line(part['name']):<{wide}}  {part['value']:6.3f}  {part['weight']:7.3g}" for part in parts]
    lines += [f"  of it in turn {part['turn'] + 1}: {part['name']} {part['value']:+.3f}" for part in row["turn_rewards"]]
    return [*lines, f"  {'total':<{wide}}  {row['reward']:6.3f}"]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
