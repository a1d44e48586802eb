"""From records to figures: accuracy whole and by slice, agreement, calibration, evidence, effort. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp
from typing import Any

import numpy as np

from actors.messages import Examined
from medr3.evaluation.disputes import Dispute, rested
from medr3.evaluation.results import Asked
from medr3.evaluation.statistics import Interval, bootstrap, brier, calibration, expected_calibration_error

SLICES = ("kind", "source", "specialty", "hops")
FORCED_OR_GIVEN = ("answer", "forced")  # the ends of an episode that came with an answer


def measure(
    questions: Sequence[Asked], records: Sequence[Examined], known: dict[str, list[Dispute]], seed: int
) -> dict[str, Any]:
    """The figures of one setting. `records` are those of the first question, then those of the second, and so on.

    The unit is the question: what several samples of one found is averaged first, because they do not vary independently.
    """
    samples = len(records) // len(questions)
    if samples * len(questions) != len(records) or not samples:
        raise ValueError(f"{len(records)} episodes do not spread evenly over {len(questions)} questions")
    accuracy = _per_question(records, samples, "correct")
    by_source = _slices(questions, accuracy, "source", seed)
    return {
        "questions": len(questions),
        "episodes": len(records),
        "accuracy": _shown(bootstrap(accuracy, seed)),
        "accuracy_mean_of_sources": float(np.mean([slice_["accuracy"]["mean"] for slice_ in by_source.values()])),
        "exact_match": _shown(bootstrap(_per_question(records, samples, "exact"), seed)),
        "f1": _shown(bootstrap(_per_question(records, samples, "f1"), seed)),
        "by": {name: by_source if name == "source" else _slices(questions, accuracy, name, seed) for name in SLICES},
        "calibration": _calibration(records),
        "evidence": _evidence(records),
        "disputes": _disputes(records, known),
        "searches": _shown(bootstrap(_per_question(records, samples, "searches"), seed)),
        "searches_per_episode": _counted(record.searches for record in records),
        "tokens_per_answer": {
            "model": float(np.mean([record.model_tokens for record in records])),
            "document": float(np.mean([record.document_tokens for record in records])),
        },
        "seconds_per_episode": float(np.mean([record.seconds for record in records])),
        "finishes": _counted(record.finish for record in records),
        "versions": sorted({record.version for record in records}),
    }


def _per_question(records: Sequence[Examined], samples: int, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.array([float(getattr(record, name)) for record in records])
    return values.reshape(-1, samples).mean(axis=1)


def _slices(
    questions: Sequence[Asked], accuracy: np.ndarray[Any, np.dtype[np.float64]], name: str, seed: int
) -> dict[str, dict[str, Any]]:
    values = np.array([str(getattr(question, name)) for question in questions])
    return {
        str(value): {
            "n": int((values == value).sum()),
            "accuracy": _shown(bootstrap(accuracy[values == value], seed)),
        }
        for value in np.unique(values)
        if value
    }


def _calibration(records: Sequence[Examined]) -> dict[str, Any] | None:
    """Over answers whose confidence is known; e to the mean log-probability of the answer's tokens is its confidence."""
    sure = [(exp(min(record.confidence, 0.0)), record.correct) for record in records if record.confidence is not None]
    if not sure:
        return None
    confidence, correct = [c for c, _ in sure], [right for _, right in sure]
    bins = calibration(confidence, correct)
    return {
        "answers": len(sure),
        "ece": expected_calibration_error(bins),
        "brier": brier(confidence, correct),
        "bins": [each._asdict() for each in bins],
    }


def _evidence(records: Sequence[Examined]) -> dict[str, Any]:
    cited = [level for record in records for level in record.cited_levels]
    found = [level for record in records for level in record.retrieved_levels]
    return {
        "cited": _counted(cited),
        "retrieved": _counted(found),
        "cited_mean_level": float(np.mean(cited)) if cited else None,
        "cited_strong": sum(level <= 2 for level in cited) / len(cited) if cited else None,
        "episodes_citing": sum(bool(record.cited) for record in records) / len(records),
    }


def _disputes(records: Sequence[Examined], known: dict[str, list[Dispute]]) -> dict[str, Any] | None:
    """None for data sets whose contradictions nobody knows."""
    if not known:
        return None
    found = rested(records, known)
    share = found.share_on_better
    bounds = (share.low, share.high) if share else None
    return {**found._asdict(), "share_on_better": share.mean if share else None, "interval": bounds}


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _shown(interval: Interval) -> dict[str, float]:
    return interval._asdict()
