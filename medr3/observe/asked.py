"""What an episode was asked. Rows hold ids and tokens: the question is made anew from the run's settings, and held against them."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from medr3.errors import UserError
from medr3.redaction import redacts
from security.identifiers import redact
from tasks.world import Universe
from trajectories.schema import Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from medr3.config import RunConfig

COLUMNS = ("question_id", "token_ids", "segments")


class Asked(NamedTuple):
    """A question as it is shown; without a right answer where only the prompt is known."""

    text: str
    options: dict[str, str]
    gold: str
    documents: list[tuple[str, int, str]]  # handed over with the question: id, level (0 where unknown), text


class AskedQuestions:
    """Call it with a row that has COLUMNS. Worlds and tokenizer are made once, when first needed; threads may share it.

    Worlds may have changed since the run: a question that its row's prompt does not contain is not shown, but the prompt is.

    Example:
        >>> AskedQuestions(Path("/nowhere"))({"question_id": "q1", "token_ids": [], "segments": []}) is None
        True
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder, self._redacts = run_folder, redacts(run_folder)
        self._made: tuple[Universe | None, Tokenizer | None] | None = None
        self._lock = Lock()

    def __call__(self, row: dict[str, Any]) -> Asked | None:
        with self._lock:
            self._made = self._made or _make(self._folder)
        universe, tokenizer = self._made
        prompt = _prompt(row, tokenizer) if tokenizer else ""
        try:
            question = universe.question(row["question_id"]) if universe else None
        except (KeyError, ValueError):
            question = None
        if question is not None and (not prompt or _words(question.text) in _words(prompt)):
            documents = [(document.id, document.evidence_level or 0, document.text) for document in question.context]
            return self._shown(Asked(question.text, question.options, question.gold, documents))
        return self._shown(Asked(prompt, {}, "", [])) if prompt else None

    def _shown(self, asked: Asked) -> Asked:
        """As it may be shown: what is stored of the run is without identifiers, and so is this."""
        if not self._redacts:
            return asked
        options = {letter: redact(text) for letter, text in asked.options.items()}
        documents = [(name, level, redact(text)) for name, level, text in asked.documents]
        return Asked(redact(asked.text), options, redact(asked.gold), documents)


def _make(run_folder: Path) -> tuple[Universe | None, Tokenizer | None]:
    from medr3.cli_common import load_config
    from medr3.datasets import tasks_of

    try:
        config = load_config(run_folder / "config.json", [])
        return tasks_of(run_folder, config), _tokenizer(run_folder, config)
    except (OSError, ValueError, KeyError, UserError):
        return None, None


def _tokenizer(run_folder: Path, config: RunConfig) -> Tokenizer | None:
    from tokenizers import Tokenizer

    path = (config.model.path or run_folder / "cold_start") / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def _prompt(row: dict[str, Any], tokenizer: Tokenizer) -> str:
    first = next((part for part in row["segments"] if part["source"] == Source.PROMPT), None)
    if first is None:
        return ""
    text: str = tokenizer.decode(row["token_ids"][first["start"] : first["end"]], skip_special_tokens=True)
    return text.strip()


def _words(text: str) -> str:
    """Without spaces: tokenizers put their own between words."""
    return "".join(text.split())
