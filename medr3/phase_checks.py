"""Do the phases fit the rest of a configuration? Raised as ValueError with the first contradiction, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from medr3.errors import did_you_mean
from tasks.world import SOURCES

if TYPE_CHECKING:
    from curriculum.config import PhaseConfig
    from medr3.config import RunConfig


def check_phases(config: RunConfig) -> None:
    """Sources that exist and offer what is asked of them, bounds that fit the engine, and a learner that has what is refreshed."""
    for phase in config.curriculum.phases:
        try:
            _check_questions(config, phase)
            _check_bounds(config, phase)
            _check_learner(config, phase)
        except ValueError as error:
            raise ValueError(f"curriculum: phase {phase.name!r} {error}") from None


def _check_questions(config: RunConfig, phase: PhaseConfig) -> None:
    for source in phase.mixture:
        if source in config.datasets:  # what it offers is known once its files are read
            if phase.retrieval and not config.retrieval.index:
                raise ValueError(f"looks up for {source} what only the world's literature answers: set retrieval.index")
            continue
        if source not in SOURCES:
            raise ValueError(f"mixes unknown task source {source!r}{did_you_mean(source, [*SOURCES, *config.datasets])}")
        offers = SOURCES[source].offers
        wanted = {
            (kind, specialty)
            for kind, specialty in offers
            if (not phase.kinds or phase.kinds.get(kind, 0) > 0)  # type: ignore[call-overload]
            and (not phase.specialties or phase.specialties.get(specialty, 0) > 0)
        }
        if not wanted:
            raise ValueError(f"asks {source} for kinds and specialties that it does not have; it has {_listed(offers)}")
    known = sorted({specialty for source in phase.mixture if source in SOURCES for _, specialty in SOURCES[source].offers})
    for specialty in phase.specialties if phase.mixture.keys() <= SOURCES.keys() else ():
        if specialty not in known:
            raise ValueError(
                f"asks for specialty {specialty!r}, but its sources have {', '.join(known)}{did_you_mean(specialty, known)}"
            )
    if phase.length is not None and config.model.path is None:
        raise ValueError("asks for a length, in words that the tiny model does not know: set model.path, or leave length out")


def _check_bounds(config: RunConfig, phase: PhaseConfig) -> None:
    try:
        budget = config.phase_budget(phase)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"does not fit `budget`: {first['msg'].removeprefix('Value error, ')}") from None
    if budget.max_response_tokens >= config.rollout.engine.max_model_len:
        raise ValueError(
            f"has max_response_tokens {budget.max_response_tokens}, which leaves no room for a prompt in"
            f" rollout.engine.max_model_len ({config.rollout.engine.max_model_len})"
        )
    if len(phase.temperatures) > config.rollout.group_size:
        raise ValueError(
            f"has {len(phase.temperatures)} temperatures, but a group has {config.rollout.group_size} episodes: the last ones would"
            " never be sampled at; shorten the ladder or raise rollout.group_size"
        )


def _check_learner(config: RunConfig, phase: PhaseConfig) -> None:
    if phase.on_entry.reference == "refresh" and config.learner.kl_coefficient == 0:
        raise ValueError("refreshes a reference policy, but with learner.kl_coefficient 0 there is none: keep it, or set one")


def _listed(offers: frozenset[tuple[str, str]]) -> str:
    return ", ".join(f"{kind} of {specialty}" for kind, specialty in sorted(offers))
