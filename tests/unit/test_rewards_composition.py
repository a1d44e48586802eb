"""Components over whole episodes: what the model wrote, what was found, what it is worth."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rewards.composition import score
from rewards.config import RewardRecipe
from rewards.recipes import load_recipe
from rewards.registry import COMPONENTS, check_recipe
from rewards.text import own_text, own_thinking
from tasks.prompting import TAGS
from tasks.questions import Question
from trajectories.schema import Episode, Search

META = "gene-inhibitor kavan meta-analysis lozes ."
TRIAL = "gene-inhibitor kavan trial rusin ."
STRANGER = "gene-inhibitor kavar rct bovex ."
NUMBER = Question.model_validate({"id": "q", "text": "?", "kind": "number", "gold": "42", "gold_documents": ["meta", "other"]})


def documents(*texts: str) -> str:
    return " ".join(f"<document> {text} </document>" for text in texts)


def search(turn: int, query: str, *found: tuple[str, str, int]) -> Search:
    names, texts, levels = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
    return Search(turn, query, names, texts, [1.0] * len(names), levels, "hash", 1.0)


FOUND = (("meta", META, 1), ("trial", TRIAL, 3), ("stranger", STRANGER, 2))


def episode(text: str, *searches: Search, answer: str = "42", finish: str = "answer") -> Episode:
    return Episode(
        "r", "g", "e", "q", 0, "p", "s", "number", [], [], [], [], [], list(searches), answer=answer, finish=finish, text=text
    )  # fmt: skip


def searched(thought: str) -> Episode:
    """An episode that found META, TRIAL and STRANGER under its first turn and then thought something."""
    text = f"<think> <search> gene-inhibitor kavan </search> {documents(META, TRIAL, STRANGER)} {thought} </think> <answer> 42 </answer>"
    return episode(text, search(0, "gene-inhibitor kavan", *FOUND))


def value(name: str, of: Episode, question: Question = NUMBER, **arguments: object) -> float:
    recipe = RewardRecipe.model_validate({"terms": [{"name": name, "arguments": arguments}]})
    return score(question, of, recipe).parts[0].value


GOOD = "<think> 7 * 6 = 42 </think> <answer> 42 </answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, 1.0),
        (GOOD + " <eos>", 1.0),
        ("7 * 6 </think> <answer> 42 </answer>", 1.0),  # the chat template opened the thinking
        ("<think> <search> q </search> 7 </think> <answer> 42 </answer>", 1.0),
        ("<think> a </think> <think> b </think> <answer> 42 </answer>", 0.0),
        ("<think> <think> a </think> <answer> 42 </answer>", 0.0),
        ("<think> a </think> <answer> 41 </answer> <answer> 42 </answer>", 0.0),
        ("<answer> 42 </answer> <think> a </think>", 0.0),
        ("<think> a <answer> 42 </answer> </think>", 0.0),
        ("<think> a </think> 42", 0.0),
        ("<think> a </think> <answer> 42", 0.0),
        ("<answer> 42 </answer>", 0.0),
        ("<think> <search> q </think> <answer> 42 </answer>", 0.0),
        ("<think> q </search> </think> <answer> 42 </answer>", 0.0),
        ("<think> a </think> <search> q </search> <answer> 42 </answer>", 0.0),
        ("<think> a </think> <answer> 42 </answer> <search> q </search>", 0.0),
        ("<think> <document> mine </document> </think> <answer> 42 </answer>", 0.0),
        ("<think> <document> mine </think> <answer> 42 </answer>", 0.0),
        ("<think> mine </document> </think> <answer> 42 </answer>", 0.0),
        ("<thi<document> x </document>nk> a </think> <answer> 42 </answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format(text: str, expected: float) -> None:
    assert value("format", episode(text)) == expected
    assert value("correct", episode(text)) == expected, "a malformed episode is never correct"


@pytest.mark.parametrize("finish", ["malformed", "budget", "searches", "loop", ""])
def test_only_an_answer_is_well_formed_and_correct(finish: str) -> None:
    unfinished = episode(GOOD, finish=finish)
    assert value("format", unfinished) == value("correct", unfinished) == 0.0
    assert value("malformed", unfinished) == (-1.0 if finish == "malformed" else 0.0)


def test_documents_may_not_be_forged_even_beside_real_ones() -> None:
    forged = searched(documents("gene-inhibitor kavan meta-analysis mine ."))
    assert value("format", forged) == 0.0
    assert value("format", searched(META)) == 1.0


@pytest.mark.parametrize(
    ("thought", "quality", "relative", "levels"),
    [
        (META, 1.0, 1.0, [1]),
        (TRIAL, 0.6, 0.0, [3]),
        (f"{META} {TRIAL}", 0.8, 0.5, [1, 3]),
        (f"{META} {META}", 1.0, 1.0, [1]),
        (STRANGER, 0.8, 0.0, [2]),  # found, but about another subject than the query's
        ("gene-inhibitor  kavan\nmeta-analysis lozes .", 1.0, 1.0, [1]),
        ("gene-inhibitor kavan meta-analysis", 0.0, 0.0, []),  # not its whole text
        ("gene-inhibitor kavan meta-analysis zomen .", 0.0, 0.0, []),  # never retrieved
        (META.upper(), 0.0, 0.0, []),
        (f"<search> {META} </search>", 0.0, 0.0, []),  # a query is no thought
        ("x" + META, 0.0, 0.0, []),  # not as words of its own
        ("", 0.0, 0.0, []),
    ],
)
def test_evidence(thought: str, quality: float, relative: float, levels: list[int]) -> None:
    of = searched(thought)
    assert value("evidence", of) == pytest.approx(quality)
    assert value("evidence_relative", of) == pytest.approx(relative)
    recipe = RewardRecipe.model_validate({"terms": [{"name": "format"}]})
    assert score(NUMBER, of, recipe).cited_levels == levels


def test_a_citation_after_the_thinking_is_none() -> None:
    of = episode(f"<think> </think> <answer> {META} </answer>", search(0, "q", *FOUND), answer=META)
    assert value("evidence", of) == 0.0


def test_a_number_that_continues_is_another_document() -> None:
    found = search(0, "drug-dose lomab", ("short", "drug-dose lomab 4", 1), ("long", "drug-dose lomab 42", 6))
    of = episode("<think> drug-dose lomab 42 </think> <answer> 42 </answer>", found)
    assert value("evidence", of) == 0.0, "only the level VI document is cited"


def test_unknown_levels_and_a_table_of_ones_own() -> None:
    unknown = episode(f"<think> {META} </think> <answer> 42 </answer>", search(0, "q", ("meta", META, 0)))
    assert value("evidence", unknown) == 0.0
    assert value("evidence", unknown, unknown=0.5) == 0.5
    assert value("evidence_relative", unknown) == 0.0
    assert value("evidence", searched(META), quality=[0.9, 0, 0, 0, 0, 0]) == 0.9


def test_turns_share_what_they_earned() -> None:
    text = f"<think> {META} {TRIAL} </think> <answer> 42 </answer>"
    of = episode(text, search(0, "gene-inhibitor kavan", FOUND[0]), search(2, "more", FOUND[1], ("other", "x", 1)))
    recipe = RewardRecipe.model_validate({"terms": [{"name": "evidence", "weight": 0.5}, {"name": "gold_recall", "weight": 2}]})
    result = score(NUMBER, of, recipe)
    by_name = {(reward.name, reward.turn): reward.value for reward in result.turn_rewards}
    assert by_name == pytest.approx(
        {("evidence", 0): 0.25, ("evidence", 2): 0.15, ("gold_recall", 0): 1.0, ("gold_recall", 2): 1.0}
    )
    assert result.total == pytest.approx(sum(by_name.values()))


@pytest.mark.parametrize(
    ("gold", "expected"),
    [(["meta"], 1.0), (["meta", "gone"], 0.5), (["gone"], 0.0), ([], 0.0), (["meta", "trial", "stranger"], 1.0)],
)
def test_gold_recall(gold: list[str], expected: float) -> None:
    question = NUMBER.model_copy(update={"gold_documents": tuple(gold)})
    assert value("gold_recall", searched(""), question) == expected


@pytest.mark.parametrize(
    ("n", "arguments", "expected"), [(0, {}, 0.0), (3, {}, -0.3), (30, {}, -1.0), (3, {"free": 2, "cost": 0.5}, -0.5)]
)
def test_search_count(n: int, arguments: dict[str, object], expected: float) -> None:
    of = episode(GOOD, *[search(turn, "q") for turn in range(n)])
    assert value("search_count", of, **arguments) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ([{"name": "corect"}], "reward 'corect' is unknown: did you mean correct?"),
        ([{"name": "evidence", "arguments": {"levels": []}}], "has no argument 'levels'; it takes quality, unknown"),
        ([{"name": "evidence", "arguments": {"quality": [1, 0]}}], "one quality in"),
        ([{"name": "evidence", "arguments": {"quality": [9, 0, 0, 0, 0, 0]}}], "one quality in"),
        ([{"name": "search_count", "arguments": {"cost": "high"}}], "reward 'search_count'"),
        ([{"name": "search_count", "arguments": {"cost": math.nan}}], "cost"),
        ([{"name": "correct", "arguments": {"question": 1}}], "it takes none"),
    ],
)
def test_a_recipe_is_refused_in_one_line(terms: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        check_recipe(RewardRecipe.model_validate({"terms": terms}))
    assert "\n" not in str(refusal.value)


def test_a_weight_is_finite_and_scoring_checks_the_recipe_too() -> None:
    with pytest.raises(ValueError, match="finite"):
        RewardRecipe.model_validate({"terms": [{"name": "format", "weight": math.nan}]})
    for _ in range(2):  # a refusal is not forgotten by the cache
        with pytest.raises(ValueError, match="'corect' is unknown"):
            score(NUMBER, episode(GOOD), RewardRecipe.model_validate({"terms": [{"name": "corect"}]}))


def recipe_of(terms: list[dict[str, object]], **settings: object) -> RewardRecipe:
    return RewardRecipe.model_validate({"terms": terms, **settings})


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"terms": [{"name": "format"}, {"name": "format"}]}, "reward 'format' is named twice in one recipe"),
        ({"terms": [{"name": "format"}], "penalties": [{"name": "evidence", "label": "format"}]}, "'format' is named twice"),
        (
            {"terms": [{"name": "format", "when": {"component": "correct", "at_least": 1}}]},
            "waits for 'correct', which the recipe",
        ),
        ({"terms": [{"name": "format"}], "replace": [{"when": {"component": "x", "equals": 0}, "value": 1}]}, "waits for 'x'"),
        ({"terms": [{"name": "format", "when": {"component": "format"}}]}, "either at_least or equals"),
        ({"terms": [{"name": "format", "clip": {"low": 1, "high": 0}}]}, "low 1 is above high 0"),
        ({"terms": [{"name": "format", "range": [0, 1]}]}, "are for rewards of your own"),
        ({"terms": [{"name": "format", "label": "mean"}]}, "'mean' is taken by a metric"),
        ({"terms": [{"name": "format", "label": "a/b"}]}, "should match pattern"),
        ({"terms": [{"name": "mine:"}]}, "write package.module:function"),
        ({"terms": [{"name": "my.rewards:mine", "range": [1, 0]}]}, "lower bound first"),
        ({"terms": []}, "at least one term"),
        ({"terms": [{"name": "format", "weigth": 1}]}, "Extra inputs"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused_in_one_line(recipe: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        RewardRecipe.model_validate(recipe)
    (problem,) = refusal.value.errors()
    assert words in problem["msg"] and "\n" not in problem["msg"]


def test_a_recipe_survives_being_written_down() -> None:
    recipe = recipe_of(
        [{"name": "correct"}, {"name": "my.rewards:mine", "deadline_s": 1, "when": {"component": "correct", "equals": 1}}],
        clip={"high": 1}, replace=[{"when": {"component": "mine", "at_least": 0.5}, "value": 0, "of": "total"}],
        penalties=[{"name": "format", "label": "mine", "baseline": 1}],
    )  # fmt: skip
    assert RewardRecipe.model_validate_json(recipe.model_dump_json()) == recipe


RIGHT = episode(GOOD)
WRONG = episode(GOOD.replace("42 </answer>", "7 </answer>"), answer="7")
CUT = episode("<think> 42", answer="", finish="budget")
SEARCHED_WRONG = episode(searched("").text.replace("42 </a", "7 </a"), *searched("").searches, answer="7")
GATED = {
    "name": "search_count",
    "label": "bonus",
    "weight": -5,
    "when": {"component": "correct", "at_least": 1},
    "arguments": {"cost": 1},
}


@pytest.mark.parametrize(
    ("settings", "of", "total"),
    [
        ({"terms": [{"name": "correct"}, GATED]}, searched(META), 6.0),
        ({"terms": [{"name": "correct"}, GATED]}, SEARCHED_WRONG, 0.0),
        ({"terms": [{"name": "correct"}, GATED | {"clip": {"high": 0.5}}]}, searched(META), 1.5),
        ({"terms": [{"name": "correct", "weight": 2}], "clip": {"high": 1.5}}, RIGHT, 1.5),
        ({"terms": [{"name": "malformed"}], "clip": {"low": 0}}, episode("", finish="malformed"), 0.0),
        ({"terms": [{"name": "correct"}], "penalties": [{"name": "format", "weight": 0.1, "baseline": 1}]}, RIGHT, 1.0),
        ({"terms": [{"name": "correct"}], "penalties": [{"name": "format", "weight": 0.1, "baseline": 1}]}, CUT, -0.1),
        # Med-R³: without form the sum is 0.1 and the penalties still come; a malformed search is −0.1 and nothing else.
        ("med_r3/reasoning", CUT, 0.1 - 0.1 - 0.1 - 0.1),
        ("med_r3/reasoning", episode("<think> </search>", finish="malformed"), -0.1),
        ("med_r3/reasoning", WRONG, 0.1),
        ("med_r3/reasoning", RIGHT, 1.0),
    ],
)
def test_gates_bounds_replacements_and_penalties(settings: dict[str, object] | str, of: Episode, total: float) -> None:
    recipe = load_recipe(settings) if isinstance(settings, str) else RewardRecipe.model_validate(settings)
    found = score(NUMBER, of, recipe)
    assert found.total == pytest.approx(total), found.lines


def test_what_has_no_weight_is_logged_and_what_was_done_is_said() -> None:
    found = score(
        NUMBER, searched(META), recipe_of([{"name": "correct", "weight": 0}, GATED | {"clip": {"high": 0.5}}], clip={"high": 0})
    )
    assert [(part.name, part.value, part.weight) for part in found.parts] == [("correct", 1.0, 0.0), ("bonus", -1.0, -5.0)]
    assert [line.note for line in found.lines] == ["logged only", "clipped from 5"]
    assert found.notes == ["the terms' sum is clipped from 0.5 to 0"]
    closed = score(NUMBER, episode(""), recipe_of([{"name": "correct", "weight": 0}, GATED]))
    assert closed.lines[1].note == "does not count: needs correct ≥ 1"


TWO_TERMS = [{"name": "evidence"}, {"name": "gold_recall", "weight": 2, "when": {"component": "correct", "at_least": 1}}]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"evidence": 1.0, "gold_recall": 1.0}),
        ({"clip": {"high": 0.5}}, {"evidence": 0.25, "gold_recall": 0.25}),
        ({"clip": {"low": 3}}, {"evidence": 1.0, "gold_recall": 1.0}),  # what the bound added is no turn's doing
        ({"replace": [{"when": {"component": "correct", "equals": 1}, "value": 0.1}]}, {}),
        ({"replace": [{"when": {"component": "correct", "equals": 1}, "value": 9, "of": "total"}]}, {}),
        (
            {"penalties": [{"name": "gold_recall", "label": "missed", "weight": 0.1, "baseline": 1}]},
            {"evidence": 1.0, "gold_recall": 1.0},
        ),
    ],
)
def test_turn_rewards_follow_what_happens_to_their_term(settings: dict[str, object], expected: dict[str, float]) -> None:
    found = score(NUMBER, searched(META), recipe_of([*TWO_TERMS, {"name": "correct", "weight": 0}], **settings))
    assert {reward.name: reward.value for reward in found.turn_rewards} == pytest.approx(expected)


NAMES = st.sampled_from(["correct", "evidence", "gold_recall", "search_count", "information_gain", "malformed", "format"])
NUMBERS = st.floats(-3, 3).map(lambda value: round(value, 2))
BOUNDS = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS).map(
    lambda two: dict(zip(("low", "high"), sorted(two) if None not in two else two, strict=True))
)


@st.composite
def recipes(draw: st.DrawFn) -> RewardRecipe:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    conditions = st.builds(lambda name, value: {"component": name, "at_least": value}, st.sampled_from(names), NUMBERS)
    terms = [
        {
            "name": name,
            "weight": draw(NUMBERS),
            "baseline": draw(st.sampled_from([0, 0, 1])),
            "when": draw(st.none() | conditions),
            "clip": draw(BOUNDS),
        }
        for name in names
    ]
    replacements = st.builds(
        lambda when, value, of: {"when": when, "value": value, "of": of}, conditions, NUMBERS, st.sampled_from(["sum", "total"])
    )
    replace = draw(st.lists(replacements, max_size=2))
    cut = draw(st.integers(1, len(terms)))
    return RewardRecipe.model_validate(
        {"terms": terms[:cut], "penalties": terms[cut:], "clip": draw(BOUNDS), "replace": replace}
    )


@settings(deadline=None)
@given(recipes(), st.sampled_from([searched(META), searched(TRIAL), RIGHT, CUT, episode("", finish="malformed")]))
def test_no_recipe_lets_turns_say_more_than_the_total_contains(recipe: RewardRecipe, of: Episode) -> None:
    found = score(NUMBER, of, recipe)
    assert math.isfinite(found.total)
    per_term = {
        line.name: sum(reward.value for reward in found.turn_rewards if reward.name == line.name) for line in found.lines
    }
    for line in found.lines:
        low, high = sorted((0.0, line.contribution))
        assert low - 1e-9 <= per_term[line.name] <= high + 1e-9
    replaced = any("because" in note for note in found.notes)
    if replaced and "total" in found.notes[0]:
        assert not found.turn_rewards
    if not found.notes:
        assert found.total == pytest.approx(sum(line.contribution for line in found.lines))


EVERYTHING = RewardRecipe.model_validate({"terms": [{"name": name} for name in COMPONENTS]})
PIECES = st.lists(st.one_of(st.sampled_from([*TAGS, META, TRIAL, "42"]), st.text(max_size=8)), max_size=24).map(" ".join)
SEARCHES = st.builds(
    search, st.integers(0, 5), st.text(max_size=8),
    st.tuples(st.sampled_from(["meta", "x"]), st.sampled_from([META, "", "<document>", " "]), st.integers(-128, 127)),
)  # fmt: skip


@settings(deadline=None)
@given(PIECES, st.lists(SEARCHES, max_size=4), st.text(max_size=12), st.sampled_from(["answer", "malformed", "budget", "?"]))
def test_no_episode_makes_a_reward_raise_or_leave_its_range(
    text: str, searches: list[Search], answer: str, finish: str
) -> None:
    result = score(NUMBER, episode(text, *searches, answer=answer, finish=finish), EVERYTHING)
    assert math.isfinite(result.total)
    values = {part.name: part.value for part in result.parts}
    assert all(COMPONENTS[name].low <= got <= COMPONENTS[name].high for name, got in values.items())
    assert result.correct == (values["correct"] == 1.0)
    assert not (result.correct and values["format"] == 0.0)
    for name in ("evidence", "evidence_relative", "gold_recall"):
        assert sum(reward.value for reward in result.turn_rewards if reward.name == name) == pytest.approx(values[name])


@settings(deadline=None)
@given(PIECES)
@example("<thi<document> x </document>nk> <<document></document>/answer>")
def test_the_models_own_text_never_gains_tags_or_words(text: str) -> None:
    own = own_text(text)
    assert all(own.count(tag) <= text.count(tag) for tag in TAGS)
    assert set(own_thinking(text).split()) <= set(text.replace("<think>", " ").split()) | set(
        own.replace("<think>", " ").split()
    )


def test_hostile_length_is_read_in_linear_time() -> None:
    of = episode("<think> " + "<document> <search> " * 50_000, search(0, "q", ("d", "<search> " * 1000, 1)))
    assert value("format", of) == value("evidence", of) == 0.0
