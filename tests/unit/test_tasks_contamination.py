"""An evaluation question among training questions is found: the same, nearly the same, or a long passage of it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contamination import COMMON, NEAR, PASSAGE, Contamination, question_key
from tasks.questions import Question

WORDS = [f"word{i}" for i in range(5_000)]


def asked(name: str, text: str, gold: str = "x", **more: object) -> Question:
    return Question.model_validate({"id": name, "text": text, "kind": "text", "gold": gold, **more})


def sentence(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


def look(evaluated: list[Question], trained: list[Question]) -> dict[str, tuple[str, str]]:
    check = Contamination(evaluated)
    check.train(trained)
    return {each.evaluated: (each.trained, each.how) for each in check.seen()}


def test_the_same_question_in_other_clothes() -> None:
    choice = {"kind": "choice", "gold": "A", "options": {"A": "Iron", "B": "Zinc"}}
    turned = {"kind": "choice", "gold": "B", "options": {"A": "zinc", "B": "IRON."}}
    one = asked("e", "Which metal is lacking?", **choice)
    other = asked("t", "which metal is LACKING", **turned)
    assert look([one], [other]) == {"e": ("t", "same")} and question_key(one) != question_key(
        asked("u", "Which is it?", **choice)
    )
    assert look([one], [asked("t", "Which metal is lacking?", **(choice | {"options": {"A": "Copper", "B": "Cobalt"}}))]) == {}


def test_a_word_changed_in_a_short_question() -> None:
    rng = random.Random(1)
    words = sentence(rng, 12)
    changed = [*words[:5], "other", *words[6:]]
    assert look([asked("e", " ".join(words))], [asked("t", " ".join(changed))]) == {"e": ("t", "near")}
    assert look([asked("e", " ".join(words))], [asked("t", " ".join([*changed[:4], "a", "b", "c", "d", *changed[8:]]))]) == {}


def test_thirteen_words_in_a_row_and_twelve() -> None:
    rng = random.Random(2)
    words, others = sentence(rng, 40), sentence(rng, 200)
    for length, found in ((PASSAGE, {"e": ("t", "passage")}), (PASSAGE - 1, {})):
        quoted = [*others[:100], *words[10 : 10 + length], *others[100:]]
        assert look([asked("e", " ".join(words))], [asked("t", " ".join(quoted))]) == found


def test_a_phrase_of_the_trade_is_no_contamination() -> None:
    rng = random.Random(3)
    phrase = sentence(rng, PASSAGE)
    evaluated = [asked("e", " ".join([*sentence(rng, 40), *phrase]))]
    trained = [asked(f"t{i}", " ".join([*sentence(rng, 40), *phrase, *sentence(rng, 5)])) for i in range(COMMON + 1)]
    assert look(evaluated, trained) == {}
    assert look(evaluated, trained[:COMMON]) == {"e": ("t0", "passage")}
    for count, given_away in ((COMMON, {f"t{i}" for i in range(COMMON)}), (COMMON + 1, set())):
        check = Contamination(evaluated)
        check.train(trained[:count])
        assert check.giving_away() == given_away


def test_passages_do_not_cross_from_one_question_into_the_next() -> None:
    rng = random.Random(4)
    words = sentence(rng, 26)
    split = [asked("t0", " ".join(words[:10])), asked("t1", " ".join(words[10:20])), asked("t2", " ".join(words[20:]))]
    assert look([asked("e", " ".join(words))], split) == {}


def test_chinese_is_compared_by_characters() -> None:
    text = "患者女性二十四岁乏力血清铁蛋白降低应给予什么治疗"
    assert look([asked("e", text)], [asked("t", f"{text[:20]}何种治疗方案为宜")])["e"][1] in ("near", "passage")


def test_nothing_and_little() -> None:
    assert look([], [asked("t", "a")]) == {} and look([asked("e", "a")], []) == {}
    assert look([asked("e", "?", gold="…")], [asked("t", "!", gold="…")]) == {"e": ("t", "same")}


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(8, 60), st.integers(0, 3))
def test_near_duplicates_are_those_that_counting_finds(seed: int, length: int, changes: int) -> None:
    """MinHash and its buckets against the exact Jaccard index of every pair."""
    rng = random.Random(seed)
    originals = [sentence(rng, length) for _ in range(60)]
    copies = [list(words) for words in originals]
    for words in copies:
        for _ in range(changes):
            words[rng.randrange(length)] = rng.choice(WORDS)
    found = look([asked(f"e{i}", " ".join(words)) for i, words in enumerate(originals)], [
        asked(f"t{i}", " ".join(words)) for i, words in enumerate(copies)
    ])  # fmt: skip
    for i, (one, other) in enumerate(zip(originals, copies, strict=True)):
        sets = [{*words, "x", *zip([*words, "x"], [*words, "x"][1:], strict=False)} for words in (one, other)]
        alike = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        if alike >= NEAR + 0.03:  # at the very edge a bucket may miss one in ten thousand
            assert found[f"e{i}"][0] == f"t{i}"
        elif alike < NEAR:
            assert f"e{i}" not in found or found[f"e{i}"][1] == "passage"


def test_a_template_that_is_asked_a_thousand_times_hides_no_copy() -> None:
    evaluated = [asked(f"e{i}", f"Which drug is given for the disease number {i}?", gold=f"drug{i}") for i in range(200)]
    trained = [
        asked(f"t{i}", f"Which drug is given for the disease number {i + 200}?", gold=f"drug{i + 200}") for i in range(2_000)
    ]
    found = look(evaluated, [*trained, asked("same", "Which drug is given for the disease number 7?", gold="drug7")])
    assert found["e7"] == ("same", "same")
