"""The episode protocol without a tokenizer: text is the truth, and the pieces in which a server spells it are its tokens.

The protocol speaks of token ids, and a server that is reached by text has none to give. So every piece of text gets a number when it
first appears, and the protocol runs on those numbers as it is: prompts grow by what was appended, stops are strings, budgets count pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

# Of text that no server has cut into tokens (documents): what English has in most vocabularies. It is shorter than every tag, so a
# tag is never a single piece, and tags are looked for in the text.
CHARACTERS_PER_TOKEN = 4
END_ID = 0  # the end of text; it is written as nothing


class WrittenText:
    """What `EpisodeTokenizer` needs of a tokenizer.

    Example:
        >>> text = WrittenText()
        >>> ids = text.encode("<search> factor V")
        >>> len(ids), text.decode(ids)
        (5, '<search> factor V')
    """

    name_or_path = "text"
    eos_token_id = END_ID
    unk_token_id = -1
    chat_template = None

    def __init__(self) -> None:
        self._pieces: list[str] = [""]
        self._numbers: dict[str, int] = {}

    def number(self, piece: str) -> int:
        """The id of a piece, from its first appearance on. The empty piece is a token too, and not the end of text."""
        if piece not in self._numbers:
            self._numbers[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._numbers[piece]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        starts = range(0, len(text), CHARACTERS_PER_TOKEN)
        return [self.number(text[start : start + CHARACTERS_PER_TOKEN]) for start in starts]

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return "".join(self._pieces[token] for token in token_ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        """The question as one piece: how it becomes a prompt is for the endpoint to say."""
        return [self.number(messages[-1]["content"])]


def cut(text: str, tokens: Sequence[str]) -> list[str] | None:
    """The text in the pieces that its tokens stand for, white space with the token before it; None where they do not fit.

    Servers show a token by itself, without the space or with the marker that its vocabulary gives it.

    Example:
        >>> cut(" drug lavan .", ["drug", "la", "##van", "."])
        [' drug', ' la', 'van', ' .']
        >>> cut("fever", ["fe", "brile"]) is None
        True
    """
    pieces: list[str] = []
    position = 0
    for token in tokens:
        core = token.strip().removeprefix("##").lstrip("Ġ▁")
        start = text.find(core, position) if core else position
        if start < 0 or text[position:start].strip():
            return None
        pieces.append(text[position : start + len(core)])
        position = start + len(core)
    if text[position:].strip() or (not pieces and text):
        return None
    return [*pieces[:-1], pieces[-1] + text[position:]] if pieces else []


def spread(text: str, count: int) -> list[str]:
    """The text in so many pieces of about one length: all that a server's token count alone allows.

    Example:
        >>> spread("fever", 2), spread("a", 3)
        (['fe', 'ver'], ['', '', 'a'])
    """
    edges = [len(text) * i // count for i in range(count + 1)] if count else []
    return [text[start:end] for start, end in pairwise(edges)]
