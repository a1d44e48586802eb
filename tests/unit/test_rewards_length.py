"""What length and language earn."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from rewards.findings import NO_FINDINGS
from rewards.language import language, language_match
from rewards.length import length_instruction, overlong, think_ratio
from tests.reward_episodes import EPISODES, PIECES, QUESTIONS, WORDS, answered, ask, episode, searched
from trajectories.schema import Episode

TEXT = QUESTIONS[3]


@pytest.mark.parametrize(
    ("thinking", "answer", "expected"),
    [
        ("", "abcd", 0.0),
        ("ab", "abcd", 0.4550542),  # (1 − e^{−0.5}) / 0.8646647
        ("abcd", "abcd", 0.7310586),  # (1 − e^{−1}) / 0.8646647
        ("abcdefgh", "abcd", 1.0),
        ("a" * 1000, "abcd", 1.0),
        ("<search> a long query </search>", "abcd", 0.0),
        ("abcd", "", 0.0),
    ],
)
def test_think_ratio(thinking: str, answer: str, expected: float) -> None:
    assert think_ratio(TEXT, answered(answer, thinking), NO_FINDINGS).value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("own", "found", "expected"),
    [(100, 0, 0.0), (600, 200, 0.0), (600, 300, -0.5), (1000, 0, -1.0), (0, 5000, -1.0), (801, 0, -1 / 200), (0, 0, 0.0)],
)
def test_overlong(own: int, found: int, expected: float) -> None:
    of = episode("", own=own, found=found, prompt=10_000)
    assert overlong(TEXT, of, NO_FINDINGS, limit=1000, buffer=200).value == pytest.approx(expected)


def test_overlong_needs_a_buffer_inside_its_limit() -> None:
    for limit, buffer in ((100, 0), (100, 101), (100, -1)):
        with pytest.raises(ValueError, match="needs 0 < buffer ≤ limit"):
            overlong(TEXT, episode(""), NO_FINDINGS, limit=limit, buffer=buffer)


@pytest.mark.parametrize(
    ("mode", "own", "expected"),
    [
        ("exact", 1000, 1.0), ("exact", 250, 0.5), ("exact", 1750, 0.5), ("exact", 2500, 0.0), ("exact", 9000, -1.0),
        ("at_most", 1000, 0.0), ("at_most", 750, 0.5), ("at_most", 0, 1.0), ("at_most", 1250, -0.5), ("at_most", 9000, -1.0),
    ],
)  # fmt: skip
def test_length_instruction(mode: str, own: int, expected: float) -> None:
    question = ask("text", "x", length={"mode": mode, "tokens": 1000})
    of = episode("", own=own, found=3000)  # documents do not count
    assert length_instruction(question, of, NO_FINDINGS).value == pytest.approx(expected)
    assert length_instruction(TEXT, of, NO_FINDINGS).value == 0.0, "nobody asked"


def test_length_instruction_needs_scales() -> None:
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="needs scales above 0"):
            length_instruction(TEXT, episode(""), NO_FINDINGS, exact_scale=scale)


TEXTS = {
    "english": "The patient should have this drug, because it is the one which would not raise the pressure.",
    "german": "Der Patient sollte das Mittel nicht bekommen, und auch eine höhere Dosis ist für ihn nicht gut.",
    "french": "Dans cette situation les patients sont traités avec une dose qui est plus faible pour être sûr.",
    "spanish": "El paciente y los familiares son informados también desde el hospital, pero hay dudas según el caso.",
    "italian": "Questo farmaco è indicato nel caso della gotta e anche delle altre malattie che sono più rare.",
    "portuguese": "O doente não tem uma alergia ao fármaco, com isso também são dadas doses pelo hospital em seu leito.",
    "dutch": "Het middel wordt niet voor deze patiënt gebruikt, maar bij een hogere dosis zijn er ook risico's.",
    "russian": "Пациенту следует назначить этот препарат, потому что он не повышает давление.",
    "greek": "Ο ασθενής πρέπει να λάβει αυτό το φάρμακο γιατί δεν αυξάνει την πίεση.",
    "arabic": "يجب أن يأخذ المريض هذا الدواء لأنه لا يرفع ضغط الدم",
    "hebrew": "החולה צריך לקבל את התרופה הזאת כי היא אינה מעלה את לחץ הדם",
    "hindi": "रोगी को यह दवा लेनी चाहिए क्योंकि इससे रक्तचाप नहीं बढ़ता",
    "chinese": "患者应该使用这种药物，因为它不会升高血压。",
    "japanese": "患者はこの薬を使うべきです。血圧を上げないからです。",
    "korean": "환자는 혈압을 올리지 않기 때문에 이 약을 사용해야 합니다.",
    "thai": "ผู้ป่วยควรใช้ยานี้เพราะไม่ทำให้ความดันโลหิตสูง",
}


@pytest.mark.parametrize("asked", TEXTS)
def test_each_language_is_told_from_all_others(asked: str) -> None:
    assert language_match(TEXTS[asked], TEXTS[asked]) == 1.0
    for other in TEXTS.keys() - {asked}:
        assert language_match(TEXTS[other], TEXTS[asked]) < 0.5, other


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        ("7 * 6 = 42", "chinese", 1.0),  # numbers have no language
        ("使用 allopurinol 治疗痛风", "chinese", 1.0),  # a foreign term
        ("allopurinol xanthine oxidase 痛风", "chinese", 2 / 5 / 0.7),
        ("急性心筋梗塞", "japanese", 1.0),  # a term without kana
        ("TNF-α und IL-6", "german", 1.0),  # too short to tell
        ("Der Patient hat Gicht. The patient has gout, and this is not what they would have.", "english", 7 / 8 / 0.7),
        ("aspirin", "russian", 0.0),
    ],
)
def test_shares(text: str, asked: str, expected: float) -> None:
    assert language_match(text, TEXTS[asked]) == pytest.approx(min(1.0, expected))


def test_language_of_thinking_and_answer() -> None:
    question = ask("text", "aspirin", text=TEXTS["chinese"])
    mixed = answered("乙酰水杨酸", TEXTS["english"])
    assert language(question, mixed, NO_FINDINGS).value == 0.5
    assert language(question, mixed, NO_FINDINGS, part="answer").value == 1.0
    assert language(question, mixed, NO_FINDINGS, part="thinking").value == 0.0
    assert language(question, answered("aspirin", TEXTS["chinese"]), NO_FINDINGS).value == 1.0, (
        "the gold phrase is in any language"
    )
    choice = ask("choice", "B", options={"A": "一", "B": "二"}, text=TEXTS["chinese"])
    assert language(choice, answered("B", TEXTS["chinese"]), NO_FINDINGS).value == 1.0, "a letter is in any language"
    assert language(choice, episode("", finish="budget"), NO_FINDINGS).value == 0.0
    with pytest.raises(ValueError, match="part must be thinking, answer or both, got 'query'"):
        language(question, mixed, NO_FINDINGS, part="query")


@given(EPISODES)
def test_all_values_are_in_range(of: Episode) -> None:
    for question in QUESTIONS:
        assert 0.0 <= language(question, of, NO_FINDINGS).value <= 1.0
        assert 0.0 <= think_ratio(question, of, NO_FINDINGS).value <= 1.0
        assert -1.0 <= overlong(question, of, NO_FINDINGS).value <= 0.0
        assert -1.0 <= length_instruction(question, of, NO_FINDINGS).value <= 1.0


@given(WORDS, WORDS, WORDS, PIECES)
def test_length_and_language_read_neither_queries_nor_documents(query: str, document: str, other: str, anything: str) -> None:
    def of(asked: str, found: str) -> Episode:
        text = f"<think> a <search> {asked} </search> <document> {found} </document> b </think> <answer> c </answer>"
        return episode(text, searched(0, asked, found), own=9)

    for reward in (language, think_ratio):
        for question in QUESTIONS:
            assert reward(question, of(query, document), NO_FINDINGS) == reward(question, of("q", other), NO_FINDINGS)
    for reward in (overlong, length_instruction):
        for question in QUESTIONS:  # tokens are counted, whatever they say
            assert reward(question, episode(anything, own=9), NO_FINDINGS) == reward(question, episode("", own=9), NO_FINDINGS)


@pytest.mark.timeout(60)
def test_hostile_length_is_read_in_linear_time() -> None:
    for piece in ("<search> </search>", "心 a ", "the le der ", "\u0660"):
        of = answered("x", piece * 100_000)
        assert 0.0 <= language(TEXT, of, NO_FINDINGS).value <= 1.0
        assert think_ratio(TEXT, of, NO_FINDINGS).value in (0.0, 1.0)
