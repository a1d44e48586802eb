"""Episodes of the fictional world as the protocol records them, for tests of rewards; and hostile ones for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from tasks.prompting import TAGS
from tasks.questions import Question
from tasks.vocabulary import PUBLICATION_TYPES, RELATIONS
from tasks.world import statement
from trajectories.schema import Episode, Search, Segment

# disease-cause dovun → kawib, gene-inhibitor kawib → muzel, and what weaker documents say instead.
CAUSE = statement("disease-cause", "dovun", 3, "kawib")
CAUSE_TOO = statement("disease-cause", "dovun", 5, "kawib")
CAUSE_WRONG = statement("disease-cause", "dovun", 4, "duwib")
INHIBITOR = statement("gene-inhibitor", "kawib", 1, "muzel")
INHIBITOR_WRONG = statement("gene-inhibitor", "kawib", 6, "nopox")
STRANGER = statement("gene-inhibitor", "duwib", 2, "muzal")
LEVELS = {name: level for level, name in enumerate(PUBLICATION_TYPES, 1)}

QUESTION = Question.model_validate(
    {
        "id": "q", "text": "disease-cause dovun then gene-inhibitor ?", "kind": "text", "gold": "muzel", "source": "world/joint",
        "gold_documents": [CAUSE, INHIBITOR],
        "reference_graphs": [[["dovun", "disease-cause", "kawib"], ["kawib", "gene-inhibitor", "muzel"]]],
    }
)  # fmt: skip


def search(turn: int, query: str, *texts: str) -> Search:
    """A search whose documents have their own text for an id and their line's evidence level."""
    levels = [LEVELS.get((text.split() + [""] * 3)[2], 0) for text in texts]
    return Search(turn, query, list(texts), list(texts), [1.0] * len(texts), levels, "hash", 1.0)


def episode(*turns: str | Search, answer: str = "muzel", finish: str = "answer") -> Episode:
    """Thoughts and searches in order; a search ends the model's turn."""
    searches = [turn for turn in turns if isinstance(turn, Search)]
    parts = ["<think>"]
    for turn in turns:
        if isinstance(turn, str):
            parts.append(turn)
        else:
            parts.append(f"<search> {turn.query} </search>")
            parts += [f"<document> {text} </document>" for text in turn.documents]
    text = " ".join([*parts, "</think>", f"<answer> {answer} </answer>"])
    segments = [Segment("model", turn, turn + 1, turn) for turn in range(len(searches) + 1)]
    return Episode(
        "r", "g", "e", "q", 0, "p", "world/joint", "text", [], [], [], segments, [], searches, answer=answer, finish=finish, text=text
    )  # fmt: skip


FIRST, SECOND = (
    search(0, "disease-cause dovun", CAUSE, CAUSE_WRONG),
    search(1, "gene-inhibitor kawib", INHIBITOR, INHIBITOR_WRONG),
)
HONEST = episode(FIRST, CAUSE, SECOND, INHIBITOR)

_NAMES = st.sampled_from(["dovun", "kawib", "muzel", "duwib", "nopox", "7", "\u202eabc"])
LINES = st.builds(statement, st.sampled_from(RELATIONS), _NAMES, st.integers(1, 6), _NAMES)
PIECES = st.lists(st.one_of(LINES, st.sampled_from(TAGS), st.text(max_size=8)), max_size=20).map(" ".join)
HOSTILE_SEARCHES = st.builds(
    Search,
    turn=st.integers(0, 4),
    query=st.one_of(st.text(max_size=8), st.sampled_from(["disease-cause dovun", "gene-inhibitor kawib"])),
    document_ids=st.lists(st.sampled_from([CAUSE, INHIBITOR, "x", ""]), max_size=4),
    documents=st.lists(st.one_of(LINES, st.sampled_from([CAUSE, INHIBITOR, "</think>", ""])), max_size=4),
    scores=st.just([]),
    evidence_levels=st.lists(st.integers(-128, 127), max_size=4),
    index_hash=st.just("h"),
    latency_ms=st.just(1.0),
)
HOSTILE = st.builds(
    lambda text, searches, answer, finish: Episode(
        "r", "g", "e", "q", 0, "p", "s", "text", [], [], [], [], [], searches, answer=answer, finish=finish, text=text
    ),
    PIECES,
    st.lists(HOSTILE_SEARCHES, max_size=4),
    st.one_of(_NAMES, st.text(max_size=12), st.sampled_from(["A", "(B) muzel", "nan", "1e999"])),
    st.sampled_from(["answer", "malformed", "budget", "searches", "loop", "?"]),
)
QUESTIONS = st.sampled_from(
    [
        QUESTION,
        QUESTION.model_copy(update={"reference_graphs": (), "gold_documents": ()}),
        QUESTION.model_copy(update={"kind": "choice", "options": {"A": "muzel", "B": "nopox"}, "gold": "A"}),
        QUESTION.model_copy(update={"kind": "number", "text": "drug-dose muzel for 7 kg ?", "gold": "49", "unit": "mg"}),
    ]
)
