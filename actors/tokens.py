"""Between token ids and the protocol's tags: the one place of this room that knows a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from tasks.prompting import ANSWER_CLOSE, DOCUMENT_CLOSE, DOCUMENT_OPEN, SEARCH_CLOSE, TAGS, question_prompt, render_documents
from tasks.questions import Document, Question
from tasks.tokenizer import load_tokenizer

END_OF_TEXT = "<end of text>"

# A turn ends here. The document tags are among them because a model that writes one is malformed: every further token is waste.
STOP_TAGS = (SEARCH_CLOSE, ANSWER_CLOSE, DOCUMENT_OPEN, DOCUMENT_CLOSE)

# One group asks the same things n times, and rendering is pure: remembering this many observations costs a few MiB at most.
_OBSERVATION_CACHE = 1024


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

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TagIds:
        spelled = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in TAGS}
        for tag, ids in spelled.items():
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                raise ValueError(
                    f"{_name(tokenizer)} has no single token for {tag}; add it as a special token, or use tag_reader()"
                )
        return cls({ids[0]: tag for tag, ids in spelled.items()}, _end_of_text(tokenizer), _decoder(tokenizer))

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


@dataclass(frozen=True, slots=True)
class TagStrings:
    """A vocabulary that spells a tag with several tokens: tags are found in the decoded text, turns end by stop string.

    The token that completes a tag may run past it (`>\\n\\n` is one token in many vocabularies). It is kept whole: the model
    sampled it, so it carries loss and its own log-probability, and the white space after the tag belongs to the turn.
    """

    end_of_text: int
    decode: Callable[[list[int]], str]

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TagStrings:
        return cls(_end_of_text(tokenizer), _decoder(tokenizer))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self.end_of_text,)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return STOP_TAGS

    def pieces(self, token_ids: Sequence[int]) -> list[Piece]:
        found: list[Piece] = []
        for run, ended in _split_at(token_ids, self.end_of_text):
            found += [Piece(part, part in TAGS) for part in _ANY_TAG.split(self.text(run)) if part]
            found += [Piece(END_OF_TEXT, is_tag=True)] * ended
        return found

    def text(self, token_ids: Sequence[int]) -> str:
        return self.decode(list(token_ids))


_ANY_TAG = re.compile(f"({'|'.join(map(re.escape, TAGS))})")


def tag_reader(tokenizer: Any) -> TagReader:
    """`TagIds` where the vocabulary allows it, `TagStrings` elsewhere."""
    try:
        return TagIds.from_tokenizer(tokenizer)
    except ValueError:
        return TagStrings.from_tokenizer(tokenizer)


class EpisodeTokenizer:
    """Turns questions and documents into the tokens that an engine sees; never touches tokens that the model wrote."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tags = tag_reader(tokenizer)
        self._encode = lru_cache(maxsize=_OBSERVATION_CACHE)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))
        )

    @classmethod
    def from_folder(cls, model_dir: str) -> EpisodeTokenizer:
        return cls(load_tokenizer(model_dir))

    def prompt(self, question: Question) -> list[int]:
        """The question in the model's own chat template, ready for the model's first token."""
        message = [{"role": "user", "content": question_prompt(question)}]
        return list(self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False))

    def observation(self, documents: Iterable[Document]) -> list[int]:
        """The tokens of what a search found; none where it found nothing."""
        return list(self._encode(render_documents(documents)))


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    def decode(token_ids: list[int]) -> str:
        text: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return decode


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
