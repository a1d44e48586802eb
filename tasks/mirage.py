"""MIRAGE (Xiong et al., Findings of ACL 2024): five sets of medical multiple-choice questions in one benchmark.json.

::

    {"mmlu": {"anatomy-000": {"question": "…", "options": {"A": "…", "B": "…"}, "answer": "A"}, …}, "medqa": {…}, …}

Its setting: no examples in the prompt, one letter as the answer, and retrieval by the question alone, never by its options. The
score is the accuracy of each set, and the plain mean of the five.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.questions import Question
from tasks.reading import QuestionsRefused, question_of

DATASETS = ("mmlu", "medqa", "medmcqa", "pubmedqa", "bioasq")
PREFIX = "mirage/"
_FIELDS = ("question", "options", "answer")


def read_mirage(path: Path) -> Iterator[Question]:
    """The questions of a benchmark.json, set after set; an entry that is none is refused by its set and id."""
    benchmark = _benchmark(path)
    unknown = sorted(set(benchmark) - set(DATASETS))
    if unknown or not benchmark:
        what = f"has a set {unknown[0]!r}" if unknown else "holds no set"
        raise QuestionsRefused(f"{path}: {what}, but MIRAGE's are {', '.join(DATASETS)}")
    for dataset in DATASETS:
        entries = benchmark.get(dataset, {})
        if not isinstance(entries, dict) or (dataset in benchmark and not entries):
            raise QuestionsRefused(f"{path}: {dataset} must hold questions by their ids")
        for name in sorted(entries):
            yield _question(dataset, name, entries[name], f"{path}: {dataset}/{name}")


def _question(dataset: str, name: str, entry: Any, where: str) -> Question:
    if not isinstance(entry, dict):
        raise QuestionsRefused(f"{where}: must be an object, not {type(entry).__name__}")
    if missing := [field for field in _FIELDS if not entry.get(field)]:
        raise QuestionsRefused(f"{where}: has no {missing[0]}")
    fields = {
        "id": f"{PREFIX}{dataset}/{name}",
        "text": entry["question"],
        "kind": "choice",
        "gold": entry["answer"],
        "options": entry["options"],
        "source": PREFIX + dataset,
        # MMLU's ids open with the subject: anatomy-000.
        "specialty": name.rpartition("-")[0] if dataset == "mmlu" else "",
    }
    return question_of(fields, where)


def _benchmark(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuestionsRefused(f"{path}: {error.strerror}: name MIRAGE's benchmark.json") from None
    except json.JSONDecodeError as error:
        raise QuestionsRefused(f"{path}, line {error.lineno}: is no JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise QuestionsRefused(f"{path}: is no JSON: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise QuestionsRefused(f"{path}: must hold MIRAGE's sets by name, not {type(found).__name__}")
    return found
