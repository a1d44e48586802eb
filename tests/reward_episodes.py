"""Episodes for the tests of rewards: what a model wrote, as the protocol would have recorded it."""

from __future__ import annotations

from hypothesis import strategies as st

from tasks.prompting import ANSWER_CLOSE, ANSWER_OPEN, TAGS
from tasks.questions import Question
from trajectories.schema import Episode, Search, Segment, Source


def ask(kind: str, gold: str, **fields: object) -> Question:
    return Question.model_validate({"id": "q", "text": "?", "kind": kind, "gold": gold, **fields})


def searched(turn: int, query: str, *documents: str) -> Search:
    n = len(documents)
    return Search(turn, query, [f"d{i}" for i in range(n)], list(documents), [1.0] * n, [1] * n, "hash", 1.0)


def episode(text: str, *searches: Search, finish: str = "answer", own: int = 0, found: int = 0, prompt: int = 7) -> Episode:
    """A response; its answer is what the answer tags enclose. `own`, `found` and `prompt` are numbers of tokens."""
    answer = text.partition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)[0].strip() if finish == "answer" else ""
    ends = [0, prompt, prompt + own, prompt + own + found]
    sources = (Source.PROMPT, Source.MODEL, Source.DOCUMENT)
    segments = [Segment(source.value, start, end, 0) for source, start, end in zip(sources, ends, ends[1:], strict=False)]
    return Episode(
        "r", "g", "e", "q", 0, "p", "s", "text", [0] * ends[-1], [], [], segments, [], list(searches),
        answer=answer, finish=finish, text=text,
    )  # fmt: skip


def answered(answer: str, thinking: str = "so it is") -> Episode:
    return episode(f"<think> {thinking} </think> <answer> {answer} </answer>")


LOOK_ALIKES = ("＜search＞", "</ans\u200bwer>", "<ANSWER>", "< think >", "<аnswer>", "\u202e", "\x00", "𝐁", "心筋梗塞", "قلب")
PIECES = st.lists(
    st.one_of(st.sampled_from([*TAGS, *LOOK_ALIKES, "42", "B", "aspirin"]), st.text(max_size=8)), max_size=20
).map(" ".join)
WORDS = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=30)  # no tag can stand in them
SEARCHES = st.lists(st.builds(searched, st.integers(0, 5), st.text(max_size=8), PIECES), max_size=4)
EPISODES = st.builds(
    lambda text, searches, finish, own, found: episode(text, *searches, finish=finish, own=own, found=found),
    PIECES, SEARCHES, st.sampled_from(["answer", "malformed", "budget", "loop", ""]), st.integers(0, 40_000), st.integers(0, 40_000),
)  # fmt: skip
QUESTIONS = (
    ask("choice", "B", options={"A": "aspirin", "B": "beta blocker"}, length={"mode": "exact", "tokens": 100}),
    ask("number", "42", unit="mg", length={"mode": "at_most", "tokens": 100}),
    ask("number", "2021-03-05"),
    ask(
        "text",
        "aspirin",
        aliases=["心筋梗塞"],
        broader=["analgesic"],
        text="Which of these should be given to the patient with this?",
    ),
    ask("text", "x", text="痛风的首选药物是什么"),
    ask("text", "x", text="痛風の第一選択薬はどれですか"),
)
