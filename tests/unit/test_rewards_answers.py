"""Hand-checked answers, one line each, of all three kinds."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.answers import is_correct
from rewards.quantities import parse_number
from tasks.questions import Question

OPTIONS = {"A": "aspirin", "B": "beta blocker", "C": "the placebo", "D": "spirin"}


def ask(kind: str, gold: str, **fields: object) -> Question:
    return Question.model_validate({"id": "q", "text": "?", "kind": kind, "gold": gold, **fields})


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True), (" B ", True), ("b", True), ("(B)", True), ("( B )", True), ("[B]", True), ("B.", True), ("B)", True),
        ("Ｂ", True), ("B beta blocker", True), ("(B) beta blocker", True), ("B: Beta Blocker", True), ("B - beta-blocker.", True),
        ("A", False), ("(A)", False), ("BB", False), ("AB", False), ("A B", False), ("A, B", False), ("B or A", False), ("B, A", False),
        ("beta blocker", False), ("B aspirin", False), ("A beta blocker", False), ("Beta", False), ("answer: B", False),
        ("not B", False), ("B C D A", False), ("", False), (" ", False), ("O", False), ("(", False), ("B\nA", False),
    ],
)  # fmt: skip
def test_choice(answer: str, right: bool) -> None:
    assert is_correct(ask("choice", "B", options=OPTIONS), answer) is right


def test_a_word_that_begins_with_the_letter_is_not_the_letter() -> None:
    question = ask("choice", "A", options={"A": "spirin", "B": "other"})
    assert not is_correct(question, "Aspirin")
    assert is_correct(question, "A spirin")


EXACT = {"lower": 42, "upper": 42}


@pytest.mark.parametrize(
    ("gold", "fields", "answer", "right"),
    [
        ("42", EXACT, "42", True), ("42", EXACT, "42.0", True), ("42", EXACT, "42.", True), ("42", EXACT, "+42", True),
        ("42", EXACT, "042", True), ("42", EXACT, "4.2e1", True), ("42", EXACT, "4.2E+01", True), ("42", EXACT, "4.2 x 10^1", True),
        ("42", EXACT, "42.001", False), ("42", EXACT, "41", False), ("42", EXACT, "-42", False), ("42", EXACT, "4 2", False),
        ("42", EXACT, "42 43", False), ("42", EXACT, "41-43", False), ("42", EXACT, "41 – 43", False), ("42", EXACT, "41 to 43", False),
        ("42", EXACT, "42 or 43", False), ("42", EXACT, "42±1", False), ("42", EXACT, "<43", False), ("42", EXACT, "~42", False),
        ("42", EXACT, "between 41 and 43", False), ("42", EXACT, "1/2", False), ("42", EXACT, "84/2", False),
        ("42", EXACT, "42 million", False), ("42", EXACT, "inf", False), ("42", EXACT, "nan", False), ("42", EXACT, "x = 42", False),
        ("42", EXACT, "42, 42", False), ("42", EXACT, "42 mg", True), ("42", EXACT, "42 mg/kg", True), ("42", EXACT, "forty-two", False),
        # 5 % where there are no limits, inclusive at both ends
        ("100", {}, "105", True), ("100", {}, "95", True), ("100", {}, "105.01", False), ("100", {}, "94.99", False),
        ("-100", {}, "-95", True), ("-100", {}, "100", False), ("0", {}, "0.0", True), ("0", {}, "0.001", False),
        ("42", {}, "44.1", True), ("42", {}, "44.11", False),
        # limits beat the 5 %, one missing limit is 5 % away
        ("100", {"lower": 90, "upper": 120}, "119", True), ("100", {"lower": 90, "upper": 120}, "89.9", False),
        ("100", {"lower": 90}, "104", True), ("100", {"lower": 90}, "106", False), ("0.3", {"lower": 0.1, "upper": 0.3}, "0.3", True),
        # thousands and decimal commas
        ("1234.5", {}, "1,234.5", True), ("1234567", {}, "1,234,567", True), ("1234", {}, "1 234", True), ("1200", {}, "1,2", False),
        ("3.5", {}, "3,5", True), ("0.125", {}, "0,125", True), ("1234", {}, "12,34", False), ("12", {}, "12,34", True),
        # scientific notation
        ("0.0012", {}, "1.2 × 10⁻³", True), ("0.0012", {}, "1.2×10^-3", True), ("1e5", {}, "100,000", True), ("1e5", {}, "10⁵", True),
        ("1e5", {}, "10^5", True), ("1e-5", {}, "−1e-5", False), ("1000", {}, "1e99999", False), ("5", {}, "10^5", False),
        # units
        ("42", {"unit": "mg"}, "42 mg", True), ("42", {"unit": "mg"}, "42mg", True), ("42", {"unit": "mg"}, "42 MG.", True),
        ("42", {"unit": "mg"}, "42", True), ("42", {"unit": "mg"}, "42 g", False), ("42", {"unit": "mg"}, "42 mg/kg", False),
        ("42", {"unit": "µg"}, "42 μg", True), ("3", {"unit": "year"}, "3 years", True), ("3", {"unit": "days"}, "3 day", True),
        ("60", {"unit": "mL/min/1.73 m²"}, "60 mL/min/1.73 m²", True), ("60", {"unit": "mL/min"}, "60 mL / min", True),
        # percent
        ("42", {"unit": "%"}, "42%", True), ("42", {"unit": "%"}, "42 percent", True), ("42", {"unit": "percent"}, "42 %", True),
        ("42", {"unit": "%"}, "0.42", False), ("42%", {}, "42", True), ("42", {"unit": "mg"}, "42 %", False),
        # dates, and gold that is no number
        ("2021-03-05", {}, "2021-03-05", True), ("2021-03-05", {}, "March 5, 2021", True), ("2021-03-05", {}, "5th Mar 2021", True),
        ("2021-03-05", {}, "2021/3/5", True), ("2021-03-05", {}, "2021-03-06", False), ("2021-03-05", {}, "3/5/2021", False),
        ("2021-03-05", {}, "2021", False), ("2021-03-05", {}, "2021-02-31", False),
        ("35 weeks, 3 days", {}, "35 Weeks 3 days", True), ("35 weeks, 3 days", {}, "35 weeks 4 days", False),
    ],
)  # fmt: skip
def test_number(gold: str, fields: dict[str, object], answer: str, right: bool) -> None:
    assert is_correct(ask("number", gold, **fields), answer) is right


@pytest.mark.parametrize(
    ("gold", "aliases", "answer", "right"),
    [
        ("Aspirin", (), "aspirin", True), ("aspirin", (), " ASPIRIN. ", True), ("aspirin", (), "aspirin or ibuprofen", False),
        ("aspirin", (), "not aspirin", False), ("aspirin", (), "aspirins", False), ("aspirin", (), "ａｓｐｉｒｉｎ", True),
        ("aspirin", (), "asp\u200birin", True), ("aspirin", (), "", False), ("aspirin", ("ASA",), "asa", True),
        ("aspirin", ("ASA",), "acetylsalicylic acid", False), ("the liver", (), "liver", True), ("liver", (), "The liver", True),
        ("a stroke", (), "stroke", True), ("hepatitis A", (), "hepatitis", False), ("hepatitis A", (), "hepatitis a", True),
        ("vitamin D", (), "vitamin", False), ("IL-6", (), "IL 6", True), ("IL-6", (), "IL-8", False), ("TNF-α", (), "TNF-alpha", True),
        ("TNF-α", (), "tnf alpha", True), ("Ménière's disease", (), "Meniere’s disease", True), ("Sjögren", (), "Sjogren", True),
        ("CD4+", (), "CD4-", False), ("CD4+", (), "CD4+", True), ("beta-blocker", (), "beta blocker", True), ("1.5", (), "15", False),
        ("1,500 IU", (), "1500 IU", True), ("factor V", (), "factor VIII", False), ("が", (), "か", False),
        ("deficiency of the enzyme", (), "deficiency of enzyme", True), ("the", (), "the", True), ("!!!", (), "???", False),
        ("!!!", (), "!!!", True), ("straße", (), "STRASSE", True), ("lavan", (), "la van", False),
        ("type 2 diabetes", (), "diabetes", False),
    ],
)  # fmt: skip
def test_text(gold: str, aliases: tuple[str, ...], answer: str, right: bool) -> None:
    assert is_correct(ask("text", gold, aliases=aliases), answer) is right


@settings(deadline=None)
@given(st.text(max_size=120), st.text(max_size=20))
@example("1" * 200_000, "")
@example("10" + "⁹" * 50, "")
@example("1e9999", "")
@example("-" * 5000, "mg")
def test_no_answer_makes_a_check_raise(answer: str, unit: str) -> None:
    for question in (
        ask("choice", "B", options=OPTIONS),
        ask("number", "42", unit=unit),
        ask("number", "2021-03-05"),
        ask("text", "the liver"),
    ):
        assert is_correct(question, answer) in (True, False)


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "{}.0", "{}e0", " {} ", "{} mg"]))
def test_a_written_integer_is_read_back(number: int, form: str) -> None:
    assert parse_number(form.format(number)) == number
