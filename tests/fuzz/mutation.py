"""Changes that keep most of a sample's structure: what is random from the first byte on is refused at the first byte."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from typing import Any

MOST_CHANGES = 4  # to one sample: more, and no part of it is what its reader expects
LONG = 50_000  # characters or bytes of what is too long: above every bound on names and lines, and quick to make

INTS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    32_767,
    65_536,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**53 + 1,
    2**63,
    2**64,
    10**18,
    10**400,
)
FLOATS = (0.0, -0.0, 0.5, 1e-308, 1e308, float("nan"), float("inf"), float("-inf"), 0.1 + 0.2, 5e-324)
WORDS = (
    "", " ", "\n", "\t", "\x00", "\x1b[31m", "\r\n", "\u2028", "\ufeff", "\u200b", "\u202e", "\ud800", "\udc80", "²",
    "١٢", "Ⅷ", "𝟙", "ß", "İ", "ﬁ", "e\u0301", "👩‍⚕️", "心筋梗塞", "קלב", "null", "nan", "-inf", "1e999", "0x1", "1_000",
    "01", "1" * 5_000, "-0", "../../etc/passwd", "/", "\\", "'", '"', "{", "}", "{query}", "%s", "${x}", "<", ">",
    "a" * 300, "=", ",", ";", ":", "|", "||", "#", "---", "- ", "&a", "*a", "!!python/object:x", "2026-13-45",
    "<think>", "</think>", "<search>", "</search>", "<document>", "</document>", "<answer>", "</answer>", "<call>",
    "</call>", "<ans", "42", "B", "5 mg", "yes", "no", "true", "A", "medr3", "world", "joint", "2001-01-01", "12:30:45",
    "0.1.2", "1.0",
)  # fmt: skip
BYTES = (
    b"", b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\n", b"\r\n", b"\x1f\x8b", b"PAR1",
    b"ARROW1", b"\xef\xbb\xbf", b"\"", b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"<", b">", b"&", b"]]>",
    b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"null", b"1e999", b"NaN",
)  # fmt: skip


def text(rng: random.Random) -> str:
    """A string that somebody may well send, or that nobody should."""
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(WORDS)
    if kind < 0.8:
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6)))
    if kind < 0.95:
        return "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x250), rng.randrange(0x10FFFF)))) for _ in range(8)
        )
    return rng.choice((*string.ascii_letters, " ", "é", "\n", "1", "-", "[")) * rng.choice((100, 2_000, LONG))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, and what Python's reader of JSON takes beside it."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 1:
        return rng.choice((None, True, False))
    if kind < 3:
        return rng.choice(INTS) if rng.random() < 0.8 else rng.randint(-1000, 1000)
    if kind < 4:
        return rng.choice(FLOATS)
    if kind < 7:
        return text(rng)
    if kind < 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 9:
        return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return deep(rng.choice((20, 200, 3_000)), rng.choice(("list", "dict")))


def deep(levels: int, kind: str) -> Any:
    """Nested further than a recursive reader goes."""
    found: Any = 1
    for _ in range(levels):
        found = [found] if kind == "list" else {"a": found}
    return found


def changed_value(rng: random.Random, tree: Any, donors: list[Any]) -> Any:
    """The same tree with one place changed: a value, a key, a length, an order, or something out of another sample."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        kind = rng.random()
        if kind < 0.65:
            return {**tree, key: changed_value(rng, tree[key], donors)}
        if kind < 0.8:
            return {name: each for name, each in tree.items() if name != key}
        if kind < 0.9:
            return {**tree, text(rng): value(rng)}
        return {(text(rng) if name == key else name): each for name, each in tree.items()}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        at = rng.randrange(len(tree))
        kind = rng.random()
        if kind < 0.7:
            return [*tree[:at], changed_value(rng, tree[at], donors), *tree[at + 1 :]]
        if kind < 0.8:
            return [*tree[:at], *tree[at + 1 :]]
        if kind < 0.95:
            return [*tree[:at], tree[at], *tree[at:]]
        return tree * rng.choice((0, 2, 50))
    if donors and rng.random() < 0.2:
        return rng.choice(donors)
    if isinstance(tree, str) and rng.random() < 0.5:
        return changed_text(rng, tree)
    if isinstance(tree, (int, float)) and not isinstance(tree, bool) and rng.random() < 0.5:
        return rng.choice(
            (-tree, tree + 1, tree - 1, tree * 2, str(tree), float(tree) if abs(tree) < 1e300 else 0.0, [tree], not tree)
        )
    return value(rng)


def changed_text(rng: random.Random, old: str) -> str:
    """The same text with a stretch cut, doubled, moved or replaced."""
    start = rng.randint(0, len(old))
    end = min(len(old), start + rng.choice((0, 1, 1, 2, 5, 20)))
    kind = rng.random()
    if kind < 0.5:
        return old[:start] + text(rng) + old[end:]
    if kind < 0.7:
        return old[:start] + old[end:]
    if kind < 0.8:
        return old[:end] + old[start:]
    if kind < 0.9:
        return rng.choice((str.upper, str.title, str.swapcase, str.strip))(old)
    return old[:start]


def changed_bytes(rng: random.Random, old: bytes) -> bytes:
    """The same bytes with some flipped, cut, doubled, set to their bounds, or the rest gone."""
    content = bytearray(old)
    at = rng.randint(0, max(0, len(content) - 1))
    kind = rng.random()
    if kind < 0.25 and content:
        content[at] ^= 1 << rng.randrange(8)
    elif kind < 0.4 and content:
        content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind < 0.6:
        content[at : at + rng.choice((0, 1, 4))] = rng.choice(BYTES)
    elif kind < 0.7:  # a length, as binary formats have them
        size = rng.choice((1, 2, 4, 8))
        content[at : at + size] = (rng.choice(INTS) % (1 << 8 * size)).to_bytes(size, "little")
    elif kind < 0.8:
        del content[at : at + rng.choice((1, 2, 8, 100))]
    elif kind < 0.9:
        content[at:at] = content[at : at + rng.choice((1, 8, 100))]
    else:
        del content[at:]
    return bytes(content)


def as_json(rng: random.Random, tree: Any) -> bytes:
    try:
        dumped = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    except RecursionError:
        dumped = "[" * LONG
    return dumped.encode("utf-8", "surrogatepass")


Change = Callable[[random.Random, bytes, list[bytes]], bytes]


def of_bytes(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    for _ in range(rng.randint(1, MOST_CHANGES)):
        sample = changed_bytes(rng, sample)
    return sample


def of_text(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    if rng.random() < 0.1:
        return of_bytes(rng, sample, samples)
    words = sample.decode("utf-8", "surrogateescape")
    for _ in range(rng.randint(1, MOST_CHANGES)):
        words = changed_text(rng, words)
    return words.encode("utf-8", "surrogatepass") if rng.random() < 0.9 else words.encode("utf-16", "surrogatepass")


def of_json(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    if rng.random() < 0.15:
        return of_bytes(rng, sample, samples)
    tree, donor = json.loads(sample), json.loads(rng.choice(samples))
    donors = [donor, *(donor.values() if isinstance(donor, dict) else donor if isinstance(donor, list) else [])]
    for _ in range(rng.randint(1, MOST_CHANGES)):
        tree = changed_value(rng, tree, donors)
    return as_json(rng, tree)


def of_lines(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    """JSON lines: mostly one line is changed within, sometimes lines as such."""
    lines = sample.split(b"\n")
    at = rng.randrange(max(1, len(lines) - 1))
    kind = rng.random()
    if kind < 0.75 and lines[at]:
        lines[at] = of_json(rng, lines[at], lines[:-1] or lines)
    elif kind < 0.82:
        lines[at : at + 1] = [lines[at], lines[at]]
    elif kind < 0.89:
        del lines[at]
    elif kind < 0.95:
        rng.shuffle(lines)
    else:
        return of_bytes(rng, sample, samples)
    return b"\n".join(lines)
