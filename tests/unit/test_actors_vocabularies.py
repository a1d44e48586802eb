"""Tags in real byte-pair vocabularies: what a token that runs past `</search>` does, in every such token that there is.

Two vocabularies: Tekken, which mistral_common ships (131,072 tokens), and one trained here on text full of tags, which has what
Tekken lacks: tokens that end one tag and begin the next.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from actors.config import EpisodeBudget
from actors.protocol import EpisodeProtocol, Finish, FinishReason, Generate, Search
from actors.tokens import EpisodeTokenizer, TagStrings
from tasks.prompting import SEARCH_CLOSE
from tasks.questions import Question
from tests.unit.test_actors_protocol import record
from trajectories.schema import Episode, VersionSpan, check, to_table

QUESTION = Question(id="q1", text="what dose ?", kind="number", gold="42")


class Tekken:
    """Tekken as the tokenizer interface that this system asks for: encode, decode, and an end of text."""

    name_or_path = "tekken"
    unk_token_id: int | None = None

    def __init__(self, path: Path) -> None:
        from mistral_common.tokens.tokenizers.tekken import SpecialTokenPolicy, Tekkenizer

        self._tekken, self._policy = Tekkenizer.from_file(path), SpecialTokenPolicy.KEEP
        self.eos_token_id = self._tekken.eos_id

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return self._tekken.encode(text, bos=False, eos=False)

    def decode(self, token_ids: list[int], **how: bool) -> str:
        return self._tekken.decode(token_ids, self._policy)

    @cached_property
    def token_bytes(self) -> dict[int, bytes]:
        tekken = self._tekken
        return {i: tekken.id_to_byte_piece(i, self._policy) for i in range(tekken.num_special_tokens, tekken.n_words)}


class Trained:
    """A byte-level BPE without any rule that keeps punctuation apart, trained on tags as models write them."""

    name_or_path = "trained"

    def __init__(self) -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        endings = ["\n\n", "\n\n42", "\n\nlomab", "\n", " ", ". so", "</think>", "\n\n<document>", "µg"]
        # What stands before the bracket varies most, so what follows it is merged with it first.
        text = [f"{letter}>{ending}" for letter in "bcdefghijklmnopqrs" for ending in endings]
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text * 10, trainer)
        self._fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
        self.encode, self.decode = self._fast.encode, self._fast.decode
        self.eos_token_id, self.unk_token_id = self._fast.eos_token_id, None

    @cached_property
    def token_bytes(self) -> dict[int, bytes]:
        byte_of = {character: byte for byte, character in _byte_characters().items()}
        vocabulary = self._fast.get_vocab().items()
        return {i: bytes(byte_of[c] for c in token) for token, i in vocabulary if i != self.eos_token_id}


def _byte_characters() -> dict[int, str]:
    """How byte-level tokenizers write bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


@lru_cache
def vocabulary(name: str) -> Any:
    if name == "trained":
        return Trained()
    mistral_common = pytest.importorskip("mistral_common")
    return Tekken(sorted((Path(mistral_common.__file__).parent / "data").glob("tekken_*.json"))[-1])


VOCABULARIES = ["tekken", "trained"]


@lru_cache
def tags_of(name: str) -> TagStrings:
    return TagStrings.from_tokenizer(vocabulary(name))


@lru_cache
def bad_bytes(name: str) -> list[int]:
    """The tokens that are no whole characters."""
    return [token for token, content in vocabulary(name).token_bytes.items() if "\ufffd" in content.decode("utf-8", "replace")]


def running_past(tokens: dict[int, bytes], tag: bytes) -> list[tuple[int, bytes, bytes]]:
    """Every token that completes the tag and goes on: its id, the part of the tag that it holds, and what follows."""
    return [
        (token, content[:length], content[length:])
        for token, content in tokens.items()
        for length in range(1, min(len(tag), len(content) - 1) + 1)
        if content[:length] == tag[-length:]
    ]


def after_a_turn(name: str, token_ids: list[int]) -> EpisodeProtocol:
    protocol = EpisodeProtocol(tags_of(name), [], EpisodeBudget(max_turn_tokens=200, max_response_tokens=900))
    protocol.on_tokens(token_ids, [-0.5] * len(token_ids), [VersionSpan(1, 0, 0, len(token_ids))])
    return protocol


def as_row(protocol: EpisodeProtocol) -> Episode:
    return protocol.to_episode(QUESTION, run_id="r", group_id="g", episode_id="e", attempt=0, phase="p")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_token_that_runs_past_a_search_is_kept_whole(name: str) -> None:
    tokenizer = vocabulary(name)
    cases = running_past(tokenizer.token_bytes, SEARCH_CLOSE.encode())
    blank = [case for case in cases if case[2].isascii() and not case[2].strip()]
    assert b"\n\n" in {rest for _, _, rest in blank}, "the one that started this"
    assert len(cases) > len(blank) > 0
    for token, held, rest in cases:
        before = tokenizer.encode("<think> so <search> dose", add_special_tokens=False)
        before += tokenizer.encode(SEARCH_CLOSE[: len(SEARCH_CLOSE) - len(held)], add_special_tokens=False)
        protocol = after_a_turn(name, [*before, token])
        # White space belongs to the turn. Anything else is a word where none may stand, and so is half a character.
        text = rest.decode("utf-8", "replace")
        expected = Finish(FinishReason.MALFORMED) if text.strip() else Search(("dose",))
        assert protocol.next() == expected, (token, rest)
        if isinstance(expected, Search):
            protocol.on_documents(tokenizer.encode("<document> 42 </document>", add_special_tokens=False), record(0, "dose"))
            assert isinstance(following := protocol.next(), Generate)
            assert following.prompt_ids[: len(before) + 1] == [*before, token]
            protocol.on_tokens([], [], [])
        row = as_row(protocol)
        assert row.token_ids[len(before)] == token
        assert row.loss_mask[: len(before) + 1] == [True] * (len(before) + 1), "the model sampled it, so it is trained, whole"
        assert row.logprobs[len(before)] == -0.5
        assert check(asdict(row)) == []


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_whole_episode_in_words_of_this_vocabulary(name: str) -> None:
    tokenizer = EpisodeTokenizer(vocabulary(name))
    assert isinstance(tokenizer.tags, TagStrings)
    protocol = EpisodeProtocol(
        tokenizer.tags, [], EpisodeBudget(max_turn_tokens=200, max_response_tokens=900, answer_tokens=32)
    )

    def say(text: str) -> None:
        ids = tokenizer.tags.spell(text)
        protocol.on_tokens(ids, [-0.5] * len(ids), [VersionSpan(1, 0, 0, len(ids))])

    say("<think>\n\nlomab <search> µg dose</search>\n\n")
    assert protocol.next() == Search(("µg dose",))

    protocol.on_documents(tokenizer.tags.spell("<document> 42 µg </document>"), record(0, "µg dose"))
    say("so 心筋梗塞 it is")  # cut by its budget
    say(" 42</answer>")
    row = as_row(protocol)
    assert (row.finish, row.answer) == ("forced", "42")
    assert row.text.endswith("so 心筋梗塞 it is</think> <answer> 42</answer>")
    assert check(asdict(row)) == []


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=40)
@given(data=st.data())
def test_bytes_in_any_order_never_raise(name: str, data: st.DataObject) -> None:
    """Tokens hold any bytes, so their text may be no UTF-8 at all."""
    tokenizer = vocabulary(name)
    begin = tokenizer.encode("<think> <search>", add_special_tokens=False)
    end = tokenizer.encode(SEARCH_CLOSE, add_special_tokens=False)
    noise = data.draw(
        st.lists(
            st.one_of(
                st.sampled_from(bad_bytes(name)), st.integers(1000, 1000 + 99) if name == "tekken" else st.integers(1, 300)
            ),
            max_size=12,
        )
    )
    protocol = after_a_turn(name, [*begin, *noise, *(end if data.draw(st.booleans()) else [])])
    if isinstance(protocol.next(), Search):
        protocol.on_documents([], *(record(0, query) for query in protocol.next().queries))
        protocol.on_tokens([], [], [])
    row = as_row(protocol)
    assert row.token_ids[len(begin) : len(begin) + len(noise)] == noise
    assert check(asdict(row)) == []
    assert to_table([row])["text"][0].as_py() == row.text, "Arrow takes nothing but UTF-8"
