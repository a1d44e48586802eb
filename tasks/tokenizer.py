"""How a tokenizer is opened: exactly as its folder says."""

from __future__ import annotations

import json
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
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


AS_WRITTEN = "tokenizer_as_written"
MODULE = '''"""The tokenizer of this folder is its tokenizer.json, as it stands."""

from transformers import PreTrainedTokenizerFast


class Tokenizer(PreTrainedTokenizerFast):
    """Needed only where code of model folders is trusted: else transformers takes the class above."""
'''
TESTED = 1_000  # tokens of the vocabulary by which two readings are told apart


def keep_as_written(folder: Path) -> None:
    """Makes `AutoTokenizer` read a folder's tokenizer.json as it stands, if it would not.

    No `tokenizer_class` reaches it for a Qwen2 model. A folder that names a class of its own does: where its code is not
    trusted, which is the default, transformers falls back to the class that reads the file.
    """
    from transformers import AutoTokenizer

    wanted = load_tokenizer(folder)
    text = " ".join(list(wanted.get_vocab())[:TESTED])
    if AutoTokenizer.from_pretrained(str(folder)).encode(text) == wanted.encode(text):
        return
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoTokenizer": [None, f"{AS_WRITTEN}.Tokenizer"]}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / f"{AS_WRITTEN}.py").write_text(MODULE, encoding="utf-8")
