"""How a tokenizer is opened: exactly as its folder says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    `tokenizer.json` is read as it stands: for Qwen2 models `AutoTokenizer` ignores the file's own rules and class, builds
    Qwen's byte-level tokenizer in their place, and silently reads every other vocabulary wrong.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (Path(folder) / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))
