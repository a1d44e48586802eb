"""What an evaluation varies: how much may be looked up, and how answers are sampled."""

from __future__ import annotations

from itertools import product
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from actors.config import EpisodeBudget
from curriculum.config import PhaseConfig
from medr3.config import RunConfig
from medr3.errors import UserError

Retrieval = Literal["on", "closed", "once", "oracle"]


class Setting(BaseModel):
    """One point of a sweep. What is None is as the phase has it that a question's source was trained in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retrieval: Retrieval = Field(
        default="on",
        description="on: the model searches; closed: it cannot; once: one search with the question alone, its documents in the prompt;"
        " oracle: the gold documents in the prompt",
    )
    mode: Literal["dense", "lexical", "hybrid"] | None = None
    top_k: int | None = Field(default=None, ge=1, le=100)
    max_searches: int | None = Field(default=None, ge=0)
    samples: int = Field(default=1, ge=1, description="episodes per question")
    temperature: float = Field(default=0.0, ge=0)

    @property
    def searches_itself(self) -> bool:
        return self.retrieval == "on"

    @property
    def name(self) -> str:
        """What tells it from the others of its sweep.

        Example:
            >>> Setting(top_k=3, samples=4, temperature=0.7).name
            'retrieval on, top-k 3, 4 samples at 0.7'
        """
        parts = [f"retrieval {self.retrieval}"]
        parts += [f"{self.mode} search"] if self.mode else []
        parts += [f"top-k {self.top_k}"] if self.top_k is not None else []
        parts += [f"at most {self.max_searches} searches"] if self.max_searches is not None else []
        parts += [f"{self.samples} samples at {self.temperature:g}"] if self.temperature else []
        return ", ".join(parts)

    def phase(self, config: RunConfig, source: str) -> PhaseConfig | None:
        """The phase that a source of questions belongs to."""
        return next((phase for phase in config.curriculum.phases if source in phase.mixture), None)

    def budget(self, config: RunConfig, source: str) -> EpisodeBudget:
        """An episode's bounds on a question of this source."""
        phase = self.phase(config, source)
        bounds = config.phase_budget(phase) if phase else config.budget
        changes: dict[str, object] = {}
        if self.top_k is not None:
            changes["top_k"] = self.top_k
        if self.max_searches is not None:
            changes["max_searches"] = self.max_searches
        if not self.searches_itself:
            changes |= {"retrieval": False, "forbid_search": True}
        return bounds.model_copy(update=changes)


def sweep(
    retrieval: Retrieval, mode: str | None, top_ks: list[int], max_searches: list[int], samples: int, temperature: float
) -> list[Setting]:
    """Every combination that makes a difference; an empty list leaves a bound as it was trained."""
    if samples > 1 and temperature == 0:
        raise UserError(f"--samples {samples}: at temperature 0 they would all be the same: add --temperature, such as 0.7")
    if max_searches and retrieval != "on":
        raise UserError(f"--max-searches: with --retrieval {retrieval} the model does not search: leave it out")
    if (top_ks or mode) and retrieval in ("closed", "oracle"):
        raise UserError(f"--top-k, --mode: with --retrieval {retrieval} nothing is searched: leave them out")
    points = product(dict.fromkeys(top_ks) or [None], dict.fromkeys(max_searches) or [None])
    return [
        Setting.model_validate(
            {
                "retrieval": retrieval,
                "mode": mode,
                "top_k": k,
                "max_searches": most,
                "samples": samples,
                "temperature": temperature,
            }
        )
        for k, most in points
    ]


LONGEST_NUMBER = 10  # digits: Python converts no more than some thousands of them


def numbers(option: str, text: str, low: int, high: int) -> list[int]:
    """A list of whole numbers from the command line.

    Example:
        >>> numbers("--top-k", "1,3", 1, 100)
        [1, 3]
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) < LONGEST_NUMBER and low <= int(part) <= high):
            raise UserError(
                f"{option} {text}: {part!r} is no whole number from {low} to {high}; write them like {low},{low + 1}"
            )
    return [int(part) for part in parts]
