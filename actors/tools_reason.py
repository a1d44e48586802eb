"""`reason CONTEXT: finding; finding`: which condition explains the findings, by Bayes' rule over a table of probabilities."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.tools import ToolAnswer
from actors.tools_config import ReasonConfig
from tasks.questions import Question

COLUMNS = ["context", "condition", "finding", "probability"]
MOST_BYTES = 64 << 20  # of a table; some hundred thousand conditions
NAMED = 20  # known contexts or findings that a note lists
MOST_FINDINGS = 64  # of one call; a patient has fewer
SHOWN_CHARACTERS = 80  # of a word that is not known
SHOWN_REASON = 300  # characters of what is wrong with a table: it may quote a whole cell


@dataclass(slots=True)
class Condition:
    """P(D | c), and P(s | D, c) of the findings that the table lists."""

    prior: float = 0.0
    findings: dict[str, float] = field(default_factory=dict)


Table = Mapping[str, Mapping[str, Condition]]
"""Context → condition → its probabilities, all names in plain form."""


class ClinicalReasoner:
    """P(D | s, c) ∝ P(D | c) · ∏ P(s_i | D, c), MedResearcher-R1's clinical reasoner (arXiv 2508.14880).

    Example:
        >>> table = {"adult": {"kavan": Condition(0.2, {"fever": 0.9}), "muzel": Condition(0.8, {"fever": 0.1, "rash": 0.5})}}
        >>> reasoner = ClinicalReasoner(table, unlisted=0.01, shown=5, origin="")
        >>> reasoner.answer("adult: fever"), reasoner.answer("adult: fever; rash")
        ('kavan 0.692; muzel 0.308', 'muzel 0.957; kavan 0.043')
        >>> reasoner.answer("adult: cough")
        'unknown finding cough; known in adult: fever, rash'
    """

    def __init__(self, table: Table, *, unlisted: float, shown: int, origin: str) -> None:
        self._table, self._unlisted, self._shown, self._origin = table, unlisted, shown, origin
        self._known = {
            context: sorted({finding for condition in conditions.values() for finding in condition.findings})
            for context, conditions in table.items()
        }

    @classmethod
    def from_config(cls, config: ReasonConfig) -> ClinicalReasoner:
        """Reads the table; ValueError in one line where it cannot be used."""
        try:
            size = config.table.stat().st_size
            if size > MOST_BYTES:
                raise ValueError(f"{config.table} has {size} bytes, at most {MOST_BYTES} are read")
            raw = config.table.read_bytes()
        except OSError as error:
            raise ValueError(f"{config.table} cannot be read: {error.strerror}") from None
        table = read_table(raw, config.table)
        return cls(table, unlisted=config.unlisted, shown=config.shown, origin=hashlib.blake2b(raw, digest_size=16).hexdigest())

    async def call(self, arguments: str, question: Question) -> ToolAnswer:
        return ToolAnswer(note=self.answer(arguments), origin=self._origin)

    def answer(self, arguments: str) -> str:
        """The conditions and their probabilities, or what is wrong with the arguments."""
        context, colon, listed = arguments.partition(":")
        context = plain(context)
        findings = list(dict.fromkeys(filter(None, map(plain, listed.split(";")))))
        if not colon or not findings:
            return "reason needs a context, a colon, and findings with semicolons between them"
        if context not in self._table:
            return f"unknown context {context[:SHOWN_CHARACTERS]}; known: {_some(sorted(self._table))}"
        if len(findings) > MOST_FINDINGS:
            return f"{len(findings)} findings, at most {MOST_FINDINGS} can be weighed"
        known = self._known[context]
        if unknown := [finding for finding in findings if finding not in known]:
            names = ", ".join(name[:SHOWN_CHARACTERS] for name in unknown[:NAMED])
            return f"unknown finding {names}; known in {context}: {_some(known)}"
        posterior = self.posterior(context, findings)
        if not posterior:
            return "no condition of this context can have all of these findings"
        ranked = sorted(posterior.items(), key=lambda item: (-item[1], item[0]))[: self._shown]
        return "; ".join(f"{condition} {probability:.3f}" for condition, probability in ranked)

    def posterior(self, context: str, findings: list[str]) -> dict[str, float]:
        """Of every condition that is possible at all; in logarithms, because many small factors vanish otherwise."""
        logs: dict[str, float] = {}
        for name, condition in self._table[context].items():
            factors = [condition.prior, *(condition.findings.get(finding, self._unlisted) for finding in findings)]
            if all(factors):
                logs[name] = sum(map(math.log, factors))
        highest = max(logs.values(), default=0.0)
        weights = {name: math.exp(value - highest) for name, value in logs.items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    async def close(self) -> None:
        """Holds nothing open."""


def plain(name: str) -> str:
    """As names are compared: one space for any white space, case aside."""
    return " ".join(name.casefold().split())


def read_table(raw: bytes, path: Path) -> Table:
    """JSON {context: {condition: {"prior": p, "findings": {finding: p}}}}, or CSV with `COLUMNS`, a prior where the finding is empty."""
    rows = {".json": _json_rows, ".csv": _csv_rows}.get(path.suffix.casefold())
    if rows is None:
        raise ValueError(f"{path}: a table is a .json or a .csv file")
    table: dict[str, dict[str, Condition]] = {}
    try:
        for context, name, finding, probability in rows(raw.decode("utf-8-sig")):
            where = f"{context} / {name} / {finding or 'prior'}"
            if isinstance(probability, bool) or not isinstance(probability, float | int) or not 0 <= probability <= 1:
                raise ValueError(f"{where}: {probability!r} is no probability")
            condition = table.setdefault(plain(context), {}).setdefault(plain(name), Condition())
            if finding:
                condition.findings[plain(finding)] = float(probability)
            else:
                condition.prior = float(probability)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:SHOWN_REASON]}") from None
    if not table:
        raise ValueError(f"{path}: it holds no condition")
    for context, conditions in table.items():
        if not any(condition.prior for condition in conditions.values()):
            raise ValueError(f"{path}: no condition of context {context[:SHOWN_CHARACTERS]!r} has a prior above 0")
    return table


def _json_rows(text: str) -> list[tuple[str, str, str, Any]]:
    rows: list[tuple[str, str, str, Any]] = []
    for context, conditions in _mapping(json.loads(text), "the file").items():
        for name, condition in _mapping(conditions, context).items():
            entry = _mapping(condition, f"{context} / {name}")
            if unknown := sorted(set(entry) - {"prior", "findings"}):
                raise ValueError(f"{context} / {name}: unknown key {unknown[0]!r}; known are prior and findings")
            rows.append((context, name, "", entry.get("prior")))
            findings = _mapping(entry.get("findings", {}), f"{context} / {name} / findings")
            rows += [(context, name, finding, probability) for finding, probability in findings.items()]
    return rows


def _csv_rows(text: str) -> list[tuple[str, str, str, Any]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    rows: list[tuple[str, str, str, Any]] = []
    try:
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"the first line must be {','.join(COLUMNS)}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} does not have {len(COLUMNS)} columns")
            rows.append((row["context"], row["condition"], row["finding"], _number(row["probability"], reader.line_num)))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def _number(text: str, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"line {line}: {text!r} is no probability") from None


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, not {type(value).__name__}")
    return value


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
