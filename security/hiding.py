"""Secrets stand in the environment, and in nothing that is written: their values are taken out of every text on its way there."""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "[secret]"
SHORTEST = 8  # characters; what is shorter is a word that texts hold for other reasons
# Of environment variables: the names that programs give to keys, such as WANDB_API_KEY or HF_TOKEN.
_VARIABLE = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE)
# Of settings, headers and parameters of addresses. A plain `token` or `key` counts as well; `token_budget` does not.
_NAME = re.compile(
    r"^(?:key|token|sig|signature|auth|authorization|password|passwd|secret|credentials?)$"
    r"|(?:^|[_.-])(?:api|access|auth|secret|private|session|subscription)[_.-]?(?:key|token|secret|id_token)$"
    r"|password|passwd|secret|credential",
    re.IGNORECASE,
)
# How the keys of well-known services begin.
_VALUE = re.compile(
    r"^(?:sk-|hf_[A-Za-z0-9]{16}|AKIA[A-Z0-9]{12}|gh[pousr]_|github_pat_|xox[abprs]-|glpat-|eyJ[A-Za-z0-9_-]{8}|Bearer )"
)
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_known: set[str] = set()  # values that were read from variables of other names


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is likely a secret.

    Example:
        >>> [is_secret_name(name) for name in ("api_key", "rollout.judge.apikey", "token", "token_budget", "http_token_file")]
        [True, True, True, False, False]
    """
    return bool(_NAME.search(name))


def check_variable(name: str) -> str:
    """The name of an environment variable; a ValueError, which does not repeat it, where it can only be the key itself.

    Example:
        >>> check_variable("JUDGE_KEY"), check_variable("")
        ('JUDGE_KEY', '')
        >>> check_variable("sk-0123456789abcdef")
        Traceback (most recent call last):
        ValueError: must name the environment variable that holds the key, and not be the key
    """
    if name and (not _VARIABLE_NAME.fullmatch(name) or _VALUE.match(name)):
        raise ValueError("must name the environment variable that holds the key, and not be the key")
    return name


def hide(value: str) -> str:
    """Remembers a value as a secret of this process, whatever its variable is called, and returns it."""
    if len(value) >= SHORTEST:
        _known.add(value)
    return value


def scrub(text: str) -> str:
    """The text without the secrets that this process knows: those hidden, and those of variables that are named like secrets.

    Example:
        >>> _ = hide("correct-horse-battery")
        >>> scrub("401: the key correct-horse-battery is unknown")
        '401: the key [secret] is unknown'
    """
    found: str = _without(_values(), text)
    return found


def scrubbed(value: Any) -> Any:
    """The same of every text within lists and dictionaries, keys included.

    Example:
        >>> _ = hide("correct-horse-battery")
        >>> scrubbed({"url": ["http://h/?k=correct-horse-battery"], "n": 1})
        {'url': ['http://h/?k=[secret]'], 'n': 1}
    """
    values = _values()
    return _without(values, value) if values else value


def holds_secret(text: str) -> bool:
    """Whether a text repeats a secret of this process, or begins as the keys of well-known services do."""
    return scrub(text) != text or bool(_VALUE.match(text))


def _without(values: list[str], value: Any) -> Any:
    if isinstance(value, str):
        for secret in values:
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, dict):
        return {_without(values, key): _without(values, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without(values, each) for each in value]
    return value


def _values() -> list[str]:
    """The longest first: one may be a part of another."""
    named = {value for name, value in os.environ.items() if len(value) >= SHORTEST and _VARIABLE.search(name)}
    return sorted({spelled for value in named | _known for spelled in _spellings(value)}, key=len, reverse=True)


@lru_cache(maxsize=1_000)
def _spellings(value: str) -> frozenset[str]:
    """A secret as texts may hold it: trimmed, in one line, quoted by Python or JSON, escaped for an address."""
    trimmed = value.strip()
    quoted = {quote(trimmed, safe, errors="replace") for safe in ("/", "")} | {quote_plus(trimmed, errors="replace")}
    shown = {repr(trimmed)[1:-1], repr(trimmed.encode(errors="replace"))[2:-1]}
    dumped = {json.dumps(trimmed, ensure_ascii=ensure)[1:-1] for ensure in (True, False)}
    spelled = {value, trimmed, " ".join(value.split())} | quoted | shown | dumped
    return frozenset(each for each in spelled if len(each) >= SHORTEST)
