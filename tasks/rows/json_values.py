"""One JSON text to its value, or to the reason why it has none."""

from __future__ import annotations

import json
from typing import Any

import orjson


class NoJSON(ValueError):
    """The text is no JSON; says why."""


def value_of(raw: bytes) -> Any:
    """The value of a JSON text; NaN and infinities, which Python writes, are read as null.

    Example:
        >>> value_of(b'{"a": NaN}')
        {'a': None}
        >>> value_of(b'{"a": ')
        Traceback (most recent call last):
        tasks.rows.json_values.NoJSON: is no JSON: Expecting value at character 7
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _slowly(raw)


def _slowly(raw: bytes) -> Any:
    """The same by Python's own reader, which knows NaN and says better what is wrong."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, parse_constant=lambda _: None)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair could be written nowhere
    except UnicodeDecodeError as error:
        raise NoJSON(f"is no UTF-8 at byte {error.start + 1}") from None
    except UnicodeEncodeError:
        raise NoJSON("holds half a character: a \\ud800 to \\udfff without its other half") from None
    except json.JSONDecodeError as error:
        raise NoJSON(f"is no JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise NoJSON("is nested too deep for a question") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise NoJSON(f"is no JSON: {error}") from None
    return value


def repeated_field(raw: bytes, name: str) -> bool:
    """Whether a row names one of its own fields twice; readers keep the last in silence.

    Example:
        >>> repeated_field(b'{"cop": 1, "cop": 2}', "cop"), repeated_field(b'{"cop": 1, "exp": "\\\\"cop\\\\""}', "cop")
        (True, False)
    """
    if raw.count(b'"%s"' % name.encode()) < 2:
        return False
    names: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names[:] = [key for key, _ in pairs]  # the outermost object comes last
        return dict(pairs)

    json.loads(raw, object_pairs_hook=collect)
    return names.count(name) > 1
