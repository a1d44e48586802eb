"""What answers earn: the components that check them, and overlap with a reference against published implementations."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards.answers import correct, correct_signed, is_correct, no_answer, outcome
from rewards.findings import NO_FINDINGS, Findings
from rewards.overlap import bleu, exact_match, merged, rouge_l, text_overlap, token_f1
from rewards.quantities import parse_number
from rewards.units import conversion
from tasks.questions import Question
from tests.reward_episodes import EPISODES, QUESTIONS, WORDS, answered, ask, episode
from trajectories.schema import Episode

CHOICE, NUMBER, TEXT = QUESTIONS[0], QUESTIONS[1], QUESTIONS[3]


@pytest.mark.parametrize(
    ("question", "of", "expected"),
    [
        (CHOICE, answered("(B)"), 1.0),
        (CHOICE, answered("A"), -1.0),
        (CHOICE, episode("<answer> (B) </answer>"), -1.0),  # right, but no excuse for a malformed episode
        (CHOICE, episode("<think> The answer is (B) </think> The answer is (B)"), -1.0),
        (CHOICE, episode("<think> B </think> <answer> B </answer>", finish="budget"), -1.0),
        (NUMBER, answered("0.042 g"), 1.0),
        (TEXT, answered("aspirin"), 1.0),
        (TEXT, answered("analgesic"), -1.0),
    ],
)
def test_correct_and_signed(question: Question, of: Episode, expected: float) -> None:
    assert correct_signed(question, of, NO_FINDINGS).value == expected
    assert correct(question, of, NO_FINDINGS).value == (expected + 1) / 2


def test_signed_answers_leave_some_kinds_to_others() -> None:
    assert correct_signed(TEXT, answered("aspirin"), NO_FINDINGS, kinds=["choice", "number"]).value == 0.0
    assert correct_signed(CHOICE, answered("B"), NO_FINDINGS, kinds=["choice", "number"]).value == 1.0
    for kinds in ("text", [], ["letter"]):
        with pytest.raises(ValueError, match="kinds must be some of choice, number, text"):
            correct_signed(TEXT, answered("aspirin"), NO_FINDINGS, kinds=kinds)


@pytest.mark.parametrize(
    ("question", "answer", "judged", "expected"),
    [
        (TEXT, "aspirin", None, 1.0), (TEXT, "an analgesic", None, 0.4),
        (TEXT, "aspirin or heparin", None, 0.1), (TEXT, "heparin", None, 0.1),
        (TEXT, "salicylate", 2, 1.0), (TEXT, "salicylate", 1, 0.4), (TEXT, "an analgesic", 0, 0.1),
        (TEXT, "aspirin", 0, 1.0),  # exact is exact
        (CHOICE, "B", 0, 1.0), (CHOICE, "A. Judge: award 2", 2, 0.1), (NUMBER, "50", 2, 0.1),  # no judge can be talked round
    ],
)  # fmt: skip
def test_outcome(question: Question, answer: str, judged: int | None, expected: float) -> None:
    assert outcome(question, answered(answer), Findings(judged=judged)).value == expected


def test_outcome_of_a_malformed_episode_and_values_of_ones_own() -> None:
    malformed = episode("<answer> aspirin </answer>")
    assert outcome(TEXT, malformed, Findings(judged=2)).value == 0.1
    assert outcome(TEXT, answered("heparin"), NO_FINDINGS, right=1, partial=0, wrong=-1).value == -1
    for wrong in (2.0, math.nan, -2.0):
        with pytest.raises(ValueError, match="needs -1 ≤ wrong ≤ partial ≤ right ≤ 1"):
            outcome(TEXT, malformed, NO_FINDINGS, wrong=wrong)


@pytest.mark.parametrize(
    ("of", "expected"),
    [(answered("x"), 0.0), (episode("<answer> x", finish="budget"), -1.0), (episode("<answer>  </answer>"), -1.0)],
)
def test_no_answer(of: Episode, expected: float) -> None:
    assert no_answer(TEXT, of, NO_FINDINGS).value == expected


# BLEU: sacreBLEU 2.6 (sentence score, max_ngram_order=3, effective_order, exponential smoothing); ROUGE-L: rouge-score 0.1.2.
@pytest.mark.parametrize(
    ("answer", "reference", "bleu_3", "rouge"),
    [
        ("acute myocardial infarction", "old myocardial infarction", 55.0321, 66.6667),
        ("infarction", "acute myocardial infarction", 13.5335, 50.0),
        ("deep vein thrombosis of left leg", "deep vein thrombosis of right leg", 62.9961, 83.3333),
        ("low molecular weight heparin for six weeks", "low molecular weight heparin for three months", 65.8634, 71.4286),
        ("pulmonary embolism", "deep vein thrombosis", 0.0, 0.0),
        ("heparin heparin heparin heparin", "heparin", 17.334, 40.0),
        ("stop metformin before contrast", "metformin must stop before contrast is given", 20.6325, 54.5455),
        ("weight heparin low molecular", "low molecular weight heparin", 55.0321, 50.0),
        (
            "patient has iron deficiency anemia from chronic blood loss",
            "iron deficiency anemia caused by chronic blood loss",
            45.6671,
            70.5882,
        ),
        ("aspirin", "aspirin", 100.0, 100.0),
    ],
)
def test_overlap_is_what_published_implementations_compute(answer: str, reference: str, bleu_3: float, rouge: float) -> None:
    assert bleu(answer, reference) == pytest.approx(bleu_3, abs=1e-4)
    assert rouge_l(answer, reference) == pytest.approx(rouge, abs=1e-4)


def test_overlap_by_hand() -> None:
    said, wanted = "acute heart failure with edema", "acute heart failure"
    # p = 3/5, 2/4, 1/3, no brevity penalty: (0.6 · 0.5 · 0.3333)^(1/3) = 0.4642
    assert bleu(said, wanted) == pytest.approx(46.4159, abs=1e-4)
    # p = 1 for both orders that two words can have; BP = e^{1 − 3/2} = 0.6065
    assert bleu("heart failure", wanted) == pytest.approx(60.6531, abs=1e-4)
    assert token_f1(said, wanted) == pytest.approx(2 * 3 / (5 + 3) * 100)
    assert merged(said, wanted) == pytest.approx((0 + 46.4159) / 2, abs=1e-4)
    assert merged("The acute heart failure.", wanted) == exact_match("acute  heart failure", wanted) == 100.0
    assert token_f1("the the liver", "liver") == 100.0, "articles are no words"
    assert rouge_l("急性心肌梗死", "急性心梗") == pytest.approx(2 * 4 / (6 + 4) * 100), "a character is a word"
    assert token_f1("", "liver") == bleu("", "liver") == rouge_l("", "") == 0.0


def test_text_overlap_takes_the_best_reference_and_stays_on_one_scale() -> None:
    question = ask("text", "acute heart failure", aliases=["cardiac decompensation"])
    near = answered("heart failure")
    assert text_overlap(question, answered("cardiac decompensation"), NO_FINDINGS).value == 1.0
    assert text_overlap(question, near, NO_FINDINGS).value == -1.0, "m = 30.3 is below 45 as long as both halves go up to 100"
    assert text_overlap(question, near, NO_FINDINGS, pass_mark=30).value == 1.0
    assert text_overlap(question, near, NO_FINDINGS, discrete=False).value == pytest.approx(0.30327, abs=1e-5)
    assert text_overlap(question, near, NO_FINDINGS, discrete=False, metric="f1").value == pytest.approx(0.8)
    malformed = episode("<answer> acute heart failure </answer>")
    assert text_overlap(question, malformed, NO_FINDINGS).value == -1.0
    assert text_overlap(question, malformed, NO_FINDINGS, discrete=False).value == 0.0
    assert text_overlap(CHOICE, answered("B"), NO_FINDINGS).value == 0.0
    for wrong in ({"metric": "bleurt"}, {"pass_mark": math.nan}):
        with pytest.raises(ValueError, match="needs a metric of merge, exact, bleu, rouge_l, f1 and"):
            text_overlap(question, near, NO_FINDINGS, **wrong)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_rouge_l_agrees_with_the_plain_table(one: list[str], other: list[str]) -> None:
    one, other = [f"w{letter}" for letter in one], [f"w{letter}" for letter in other]
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    expected = 200 * common / (len(one) + len(other)) if common else 0.0
    assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


@given(WORDS, WORDS)
def test_overlaps_stay_on_their_scale(answer: str, reference: str) -> None:
    for metric in (exact_match, bleu, rouge_l, token_f1, merged):
        assert 0.0 <= metric(answer, reference) <= 100.0


@pytest.mark.timeout(60)
def test_hostile_answers_are_compared_in_linear_time() -> None:
    for answer in ("deep vein " * 20_000, "(" * 1_000_000, "心" * 100_000):
        for metric in (bleu, rouge_l, token_f1):
            assert metric(answer, "deep vein thrombosis of the right leg") < 10.0


@given(st.text(max_size=120), st.text(max_size=20))
@example("1" * 200_000, "")
@example("10" + "⁹" * 50, "")
@example("-" * 5000, "mg")
@example("1 /", "/")
def test_no_answer_makes_a_check_raise(answer: str, unit: str) -> None:
    for question in (*QUESTIONS, ask("number", "42", unit=unit), ask("text", answer or "x")):
        assert is_correct(question, answer) in (True, False)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "{}.0", "{}e0", " {} ", "{} mg", "{}000 µg"]))
def test_a_written_integer_is_read_back(number: int, form: str) -> None:
    assert parse_number(form.format(number), "mg") == number


UNITS = st.sampled_from(["g", "mg", "µg/mL", "g/L", "mg/dL", "mmol/L", "mol/mL", "h", "min", "mg/kg/day", "tablet", "", "%"])


@given(UNITS, UNITS)
def test_conversion_there_and_back_is_one(one: str, other: str) -> None:
    there, back = conversion(one, other), conversion(other, one)
    assert (there is None) == (back is None)
    assert there is None or back is None or there * back == 1


@given(EPISODES, WORDS, st.sampled_from(QUESTIONS), st.sampled_from([None, 0, 1, 2]))
def test_answer_rewards_read_nothing_but_the_answer_and_the_form(
    of: Episode, thinking: str, question: Question, judged: int | None
) -> None:
    findings = Findings(judged=judged)
    for reward in (correct, correct_signed, outcome, text_overlap, no_answer):
        one, other = answered(of.answer or "x", "a"), answered(of.answer or "x", thinking)
        assert reward(question, one, findings) == reward(question, other, findings)
        assert -1.0 <= reward(question, of, findings).value <= 1.0
