"""The analyzer and the embedded encoder."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_service.analyzer import analyze, normalise, words
from retrieval_service.config import RetrievalConfig
from retrieval_service.encoders import HashedNgrams, load_encoder


def test_medical_names_survive() -> None:
    tokens = analyze("IL-6, vitamin D, factor V, type 2, TNF-α, disease-cause, 0.5 mg")
    assert {"il-6", "vitamin", "d", "vitamin d", "factor v", "type 2", "tnf-α", "disease-cause", "0.5"} <= set(tokens)


@pytest.mark.parametrize("spelling", ["IL-6", "il-6", "IL\u20116", "IL\u20136", "ＩＬ－６", "  IL-6 ,"])
def test_spellings_of_one_name_are_one_token(spelling: str) -> None:
    assert analyze(spelling) == ["il-6"]


def test_a_part_of_a_compound_is_found_but_not_the_other_way_round() -> None:
    assert set(analyze("blocker")) < set(analyze("beta-blocker"))
    assert "beta-blocker" not in analyze("beta blocker")


def test_nothing_is_stemmed() -> None:
    assert analyze("diabetes tumours") == ["diabetes", "tumours"]


@given(st.text())
def test_any_text_gives_words_that_are_their_own_words(text: str) -> None:
    for word in words(text):
        assert word and word == word.strip()
    assert words(normalise(text)) == words(normalise(normalise(text)))


@given(st.lists(st.text(), max_size=8))
def test_vectors_have_length_one_or_no_word(texts: list[str]) -> None:
    vectors = HashedNgrams(64).encode(texts, "query")
    assert vectors.shape == (len(texts), 64) and vectors.dtype == np.float32
    for text, length in zip(texts, np.linalg.norm(vectors, axis=1), strict=True):
        # Signed buckets may cancel out, so a text with words may be the zero vector, but a text without words always is.
        assert length == pytest.approx(1.0, abs=1e-5) or length == 0.0
        assert words(text) or length == 0.0


@given(st.lists(st.text(min_size=1), min_size=2, max_size=6))
def test_a_vector_does_not_depend_on_its_batch(texts: list[str]) -> None:
    encoder = HashedNgrams(32)
    alone = np.concatenate([encoder.encode([text], "query") for text in texts])
    assert (encoder.encode(texts, "query") == alone).all()


def test_word_order_matters() -> None:
    a, b, c = HashedNgrams(256).encode(["cause of pain", "pain of cause", "cause of pain"], "query")
    assert (a == c).all() and a @ b < 0.95


def test_vectors_are_equal_in_another_process() -> None:
    program = "from retrieval_service.encoders import *; print(HashedNgrams(32).encode(['TNF-α, vitamin D'], 'query').tolist())"
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(ValueError, match=r"retrieval\.encoder medcpt: is no folder; name one, or set it to 'hashed-ngrams'"):
        load_encoder(RetrievalConfig(encoder="medcpt"))
