"""Words: their scores by definition, and their misspellings."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_service.lexical import LexicalIndex, Scope
from retrieval_service.postings import K1, B, Counted, write_lexical
from retrieval_service.spelling import Spelling, correctable, within_one_slip, write_spelling

tokens = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), min_size=1, max_size=12)


def distance(first: str, second: str) -> int:
    """Optimal string alignment, as it is taught."""
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    table[:, 0], table[0, :] = range(len(first) + 1), range(len(second) + 1)
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and b == first[i - 2]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return int(table[-1, -1])


short = st.text(alphabet="abc", max_size=6)


@given(short, short)
def test_one_slip_is_a_distance_of_at_most_one(first: str, second: str) -> None:
    assert within_one_slip(first, second) == (distance(first, second) <= 1)


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Spelling]:
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("abcde", k=rng.randint(4, 9))) for _ in range(500)} | {"il-6-receptor", "vukradru2"})
    folder = tmp_path_factory.mktemp("spelling")
    write_spelling(words, folder)
    return words, Spelling.load(folder)


@settings(max_examples=30)
@given(st.text(alphabet="abcde", min_size=5, max_size=9))
def test_every_word_within_one_slip_is_a_candidate(spelled: tuple[list[str], Spelling], asked: str) -> None:
    words, spelling = spelled
    near = {
        place
        for place, word in enumerate(words)
        if abs(len(word) - len(asked)) <= 1 and correctable(word) and distance(asked, word) <= 1
    }
    assert near <= set(spelling.candidates(asked))


def test_numbers_are_never_corrected(spelled: tuple[list[str], Spelling]) -> None:
    _, spelling = spelled
    assert spelling.candidates("vukradru1") == spelling.candidates("il-8-receptor") == spelling.candidates("abc") == []


def _built(documents: list[list[str]], scopes: list[Scope], folder: Path, batch_rows: int) -> LexicalIndex:
    paths = []
    for start in range(0, len(documents), batch_rows):
        paths.append(folder / f"{start}.npz")
        Counted.of(documents[start : start + batch_rows]).save(paths[-1])
    write_lexical(paths, batch_rows, scopes, folder, lambda done: None)
    return LexicalIndex.load(folder)


@settings(max_examples=40)
@given(
    documents=tokens,
    batch_rows=st.integers(1, 5),
    query=st.lists(st.sampled_from("abcdefgz"), min_size=1, max_size=3, unique=True),
    cut=st.integers(0, 12),
)
def test_scores_are_bm25_of_each_scope_however_it_was_counted(
    documents: list[list[str]], batch_rows: int, query: list[str], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cut = min(cut, len(documents))
    halves = [Scope("x", 0, cut), Scope("y", cut, len(documents))]
    scopes = [Scope("", 0, len(documents)), *(half for half in halves if half.start < half.stop)]
    index = _built(documents, scopes, tmp_path_factory.mktemp("lexical"), batch_rows)
    for place, scope in enumerate(scopes):
        part = documents[scope.start : scope.stop]
        mean = sum(map(len, part)) / len(part)
        expected = {}
        for row, document in enumerate(part, start=scope.start):
            score = 0.0
            for word in query:
                frequency, count = sum(word in other for other in part), document.count(word)
                if count:
                    rarity = np.log(1 + (len(part) - frequency + 0.5) / (frequency + 0.5))
                    score += rarity * count / (count + K1 * (1 - B + B * len(document) / mean))
            if score:
                expected[row] = score
        found = index.search([query], place, scope, len(part))
        got = {row: score for row, score in zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True) if row >= 0}
        assert got == pytest.approx(expected, rel=1e-5)


def test_a_misspelled_word_counts_as_one_word_and_a_known_one_as_itself(tmp_path: Path) -> None:
    documents = [["metformin"], ["metformim"], ["aspirin"], ["metformins", "aspirin"]]
    scopes = [Scope("", 0, 4), Scope("first", 0, 1)]
    index = _built(documents, scopes, tmp_path, 2)
    words = {word: place for place, word in enumerate(index.words)}

    def meant(word: str, place: int = 0) -> dict[str, float]:
        return {index.words[token]: weight for token, weight in index.meant([word], place)}

    assert meant("metformin") == {"metformin": 1.0}
    assert meant("metfornin") == {"metformin": 1.0}
    assert meant("metformi") == {"metformin": 0.5, "metformim": 0.5}
    assert meant("metformim", place=1) == {"metformin": 1.0}, "what another collection knows is a slip in this one"
    assert meant("ibuprofen") == {} and set(words) == {"metformin", "metformim", "metformins", "aspirin"}


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    """Words as frequent as in language, so that queries have rare words and words of every second document."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(400)]
    shares = [1 / (i + 1) for i in range(400)]
    documents = [rng.choices(words, shares, k=rng.randint(3, 25)) for _ in range(3000)]
    return _built(documents, [Scope("", 0, 3000), Scope("part", 500, 2500)], tmp_path_factory.mktemp("skewed"), 1024)


@settings(max_examples=150, deadline=None)
@given(
    query=st.lists(st.integers(0, 399).map(lambda i: f"w{i}"), min_size=1, max_size=8),
    places=st.integers(1, 40),
    place=st.integers(0, 1),
    admitted=st.sampled_from([1, 2, 7]),
)
def test_documents_that_are_left_out_early_are_not_among_the_best(
    skewed: LexicalIndex, query: list[str], places: int, place: int, admitted: int
) -> None:
    scope = (Scope("", 0, 3000), Scope("part", 500, 2500))[place]
    mask = np.arange(3000) % admitted == 0
    summed = np.zeros(scope.stop - scope.start)
    for token, weight in skewed.meant(query, place):
        of_token = slice(*skewed.starts[place, token : token + 2])
        summed[skewed.rows[of_token]] += weight * skewed.scores[of_token]
    summed *= mask[scope.start : scope.stop]
    wanted = np.sort(summed[summed > 0])[::-1][:places]
    found = skewed.search([query], place, scope, places, mask if admitted > 1 else None)
    rows = found.rows[0, found.rows[0] >= 0] - scope.start
    assert len(set(rows.tolist())) == len(rows) == len(wanted)
    np.testing.assert_allclose(found.scores[0, : len(rows)], wanted, rtol=1e-6)
    np.testing.assert_allclose(summed[rows], wanted, rtol=1e-6)


def test_most_of_a_common_word_is_never_read(skewed: LexicalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    looked_up = LexicalIndex._looked_up

    def counted(self: LexicalIndex, found: np.ndarray, scores: np.ndarray, terms: list[object]) -> object:
        read.append(len(found))
        return looked_up(self, found, scores, terms)  # type: ignore[arg-type]

    monkeypatch.setattr(LexicalIndex, "_looked_up", counted)
    skewed.search([["w0", "w150", "w200"]], 0, Scope("", 0, 3000), 10)
    assert read and read[0] < 200 < skewed.starts[0, skewed.vocabulary["w0"] + 1] - skewed.starts[0, skewed.vocabulary["w0"]]
