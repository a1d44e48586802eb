"""What was found out about an episode before it is scored: everything that needs a judge, an encoder or other I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Triple(NamedTuple):
    """One step of reasoning. `turn` is the turn whose search brought it; None means that no search did before it was thought."""

    subject: str
    relation: str
    object: str
    turn: int | None = None


Graph = tuple[Triple, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings are handed to every component, so that scoring itself stays pure. What is absent is left to rules.

    Example:
        >>> Findings(judged=1, relevance={0: 0.8}).relevance.get(1) is None
        True
    """

    judged: int | None = None  # the verdict on the answer: 2 right, 1 partly right, 0 wrong
    relevance: Mapping[int, float] = field(default_factory=dict)  # per turn with a search, 0 … 1; 0 where contradicted
    graph: Graph | None = None  # what the thinking states
    similarity: tuple[float, ...] = ()  # cosine of the thinking's embedding with that of each reference graph


NO_FINDINGS = Findings()


class JudgeFailed(Exception):
    """No usable verdict, for the reason that is its text. The episode leaves its group and is counted; it gets no number."""
