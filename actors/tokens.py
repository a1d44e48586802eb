"""Between token ids and the protocol's tags: the one place of this room that knows a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from tasks.prompting import (
    ALL_TAGS,
    ANSWER_CLOSE,
    CALL_CLOSE,
    DOCUMENT_CLOSE,
    DOCUMENT_OPEN,
    SEARCH_CLOSE,
    TAGS,
    question_prompt,
    render_documents,
)
from tasks.questions import Document, Question
from tasks.tokenizer import load_tokenizer

END_OF_TEXT = "<end of text>"

# A turn ends here. The document tags are among them because a model that writes one is malformed: every further token is waste.
STOP_TAGS = (SEARCH_CLOSE, CALL_CLOSE, ANSWER_CLOSE, DOCUMENT_OPEN, DOCUMENT_CLOSE)

# One group asks the same things n times, and rendering is pure: remembering this many observations costs a few MiB at most.
_OBSERVATION_CACHE = 1024

_HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no whole character
_MOST_BYTES = 4  # of one character in UTF-8


class Piece(NamedTuple):
    """One stretch of a turn: a tag (or the end of text), or the text between two tags."""

    text: str
    is_tag: bool


class TagReader(Protocol):
    """How one vocabulary spells tags. `stop_token_ids` and `stop_strings` are what an engine needs to end a turn in time."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    @property
    def stop_strings(self) -> tuple[str, ...]: ...

    def pieces(self, token_ids: Sequence[int]) -> list[Piece]: ...

    def text(self, token_ids: Sequence[int]) -> str: ...

    def spell(self, text: str) -> list[int]:
        """The tokens of tags with white space between them, as the protocol writes them."""
        ...

    def single_tokens(self, tags: Iterable[str]) -> tuple[int, ...]:
        """The tokens of those of the tags that are one token each."""
        ...


@dataclass(frozen=True, slots=True)
class TagIds:
    """A vocabulary in which every tag is one token, so tags are found by id and a turn never runs past its end.

    Example:
        >>> words = {7: "<think>", 8: "fever"}
        >>> tags = TagIds({7: "<think>"}, end_of_text=0, decode=lambda ids: " ".join(words[i] for i in ids))
        >>> tags.pieces([7, 8, 0])
        [Piece(text='<think>', is_tag=True), Piece(text='fever', is_tag=False), Piece(text='<end of text>', is_tag=True)]
    """

    by_id: Mapping[int, str]
    end_of_text: int
    decode: Callable[[list[int]], str]
    encode: Callable[[str], list[int]] | None = None  # none: tags are spelled without white space between them

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, tags: Sequence[str] = TAGS) -> TagIds:
        spelled = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in tags}
        for tag, ids in spelled.items():
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                raise ValueError(
                    f"{_name(tokenizer)} has no single token for {tag}; add it as a special token, or use tag_reader()"
                )
        by_id = {ids[0]: tag for tag, ids in spelled.items()}
        return cls(by_id, _end_of_text(tokenizer), _decoder(tokenizer), _encoder(tokenizer))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self.end_of_text, *(token for token, tag in self.by_id.items() if tag in STOP_TAGS))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    def pieces(self, token_ids: Sequence[int]) -> list[Piece]:
        found: list[Piece] = []
        run: list[int] = []
        for token in token_ids:
            tag = END_OF_TEXT if token == self.end_of_text else self.by_id.get(token)
            if tag is None:
                run.append(token)
                continue
            if run:
                found.append(Piece(self.text(run), is_tag=False))
                run = []
            found.append(Piece(tag, is_tag=True))
        if run:
            found.append(Piece(self.text(run), is_tag=False))
        return found

    def text(self, token_ids: Sequence[int]) -> str:
        return self.decode(list(token_ids))

    def spell(self, text: str) -> list[int]:
        if self.encode is not None:
            return self.encode(text)
        id_of = {tag: token for token, tag in self.by_id.items()}
        return [id_of[tag] for tag in text.split()]

    def single_tokens(self, tags: Iterable[str]) -> tuple[int, ...]:
        wanted = set(tags)
        return tuple(token for token, tag in self.by_id.items() if tag in wanted)


@dataclass(frozen=True, slots=True)
class TagStrings:
    """A vocabulary that spells a tag with several tokens: tags are found in the decoded text, turns end by stop string.

    The token that completes a tag may run past it (`>\\n\\n` is one token in many vocabularies). It is kept whole: the model
    sampled it, so it carries loss and its own log-probability. White space after the tag belongs to the turn; any other
    character there (`>.` and `></` are tokens too) is a word where none may be, so the turn is malformed.
    """

    end_of_text: int
    decode: Callable[[list[int]], str]
    encode: Callable[[str], list[int]] | None = None  # none: an answer cannot be forced
    tags: tuple[str, ...] = TAGS

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, tags: Sequence[str] = TAGS) -> TagStrings:
        encode, decode = _encoder(tokenizer), _decoder(tokenizer)
        for tag in tags:
            if decode(encode(tag)).strip() != tag:
                raise ValueError(f"{_name(tokenizer)} cannot spell {tag}: add it as a token")
        return cls(_end_of_text(tokenizer), decode, encode, tuple(tags))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self.end_of_text,)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(tag for tag in STOP_TAGS if tag in self.tags)

    def pieces(self, token_ids: Sequence[int]) -> list[Piece]:
        found: list[Piece] = []
        for run, ended in _split_at(token_ids, self.end_of_text):
            found += [Piece(part, part in self.tags) for part in _any_of(self.tags).split(self.text(run)) if part]
            found += [Piece(END_OF_TEXT, is_tag=True)] * ended
        return found

    def text(self, token_ids: Sequence[int]) -> str:
        return self.decode(list(token_ids))

    def spell(self, text: str) -> list[int]:
        if self.encode is None:
            raise ValueError(f"TagStrings was made without `encode`, so {text!r} cannot be written for the model")
        return self.encode(text)

    def single_tokens(self, tags: Iterable[str]) -> tuple[int, ...]:
        return ()


@lru_cache(maxsize=4)
def _any_of(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, tags))})")


def tag_reader(tokenizer: Any, *, tools: bool = False) -> TagReader:
    """`TagIds` where the vocabulary allows it, `TagStrings` elsewhere. With tools, the call tags are tags as well."""
    tags = ALL_TAGS if tools else TAGS
    try:
        return TagIds.from_tokenizer(tokenizer, tags)
    except ValueError:
        return TagStrings.from_tokenizer(tokenizer, tags)


class EpisodeTokenizer:
    """Turns questions and documents into the tokens that an engine sees; never touches tokens that the model wrote."""

    def __init__(self, tokenizer: Any, *, tools: bool = False) -> None:
        self._tokenizer = tokenizer
        self.tags = tag_reader(tokenizer, tools=tools)
        self._encode = lru_cache(maxsize=_OBSERVATION_CACHE)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))
        )

    @classmethod
    def from_folder(cls, model_dir: str, *, tools: bool = False) -> EpisodeTokenizer:
        return cls(load_tokenizer(model_dir), tools=tools)

    def prompt(self, question: Question) -> list[int]:
        """The question in the model's own chat template, ready for the model's first token."""
        message = [{"role": "user", "content": question_prompt(question)}]
        return list(self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False))

    def observation(self, documents: Iterable[Document]) -> list[int]:
        """The tokens of what a search found; none where it found nothing."""
        return list(self._encode(render_documents(documents)))

    def pages(self, text: str, tokens: int) -> list[str]:
        """The text cut into pages of about so many tokens; never inside a character, so a page may be a few tokens longer."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= tokens:
            return [text]
        pages: list[str] = []
        start = 0
        while start < len(ids):
            end = min(start + tokens, len(ids))
            while self.tags.text(ids[start:end]).endswith(_HALF_CHARACTER) and end < min(
                start + tokens + _MOST_BYTES, len(ids)
            ):
                end += 1
            pages.append(self.tags.text(ids[start:end]))
            start = end
        return pages


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    def decode(token_ids: list[int]) -> str:
        text: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return decode


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


def _end_of_text(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{_name(tokenizer)} has no eos token, so an episode could not end; set eos_token in its configuration"
        )
    return int(tokenizer.eos_token_id)


def _name(tokenizer: Any) -> str:
    return f"tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}"


def _split_at(token_ids: Sequence[int], separator: int) -> Iterable[tuple[list[int], bool]]:
    """The runs between separators, each with whether a separator follows it."""
    run: list[int] = []
    for token in token_ids:
        if token == separator:
            yield run, True
            run = []
        else:
            run.append(token)
    if run:
        yield run, False
