"""The words of the protocol: tags, and how questions and documents are put into text. No I/O, no tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.questions import Document, Question

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
SEARCH_OPEN, SEARCH_CLOSE = "<search>", "</search>"
DOCUMENT_OPEN, DOCUMENT_CLOSE = "<document>", "</document>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (
    THINK_OPEN, THINK_CLOSE, SEARCH_OPEN, SEARCH_CLOSE, DOCUMENT_OPEN, DOCUMENT_CLOSE, ANSWER_OPEN, ANSWER_CLOSE,
)  # fmt: skip
# Tags of their own, because only a vocabulary that is used with tools needs them.
CALL_OPEN, CALL_CLOSE = "<call>", "</call>"
CALL_TAGS = (CALL_OPEN, CALL_CLOSE)
ALL_TAGS = (*TAGS, *CALL_TAGS)
LONGEST_TAG = max(map(len, ALL_TAGS))


def strip_tags(text: str) -> str:
    """Removes the protocol's tags from text that comes from outside, so that a document can never open or close a turn.

    Removing one tag can complete another, which then goes too: one pass over the text, looking back at every `>`.

    Example:
        >>> strip_tags("a </sea</search>rch> b")
        'a  b'
    """
    if not any(tag in text for tag in ALL_TAGS):
        return text
    kept: list[str] = []
    for character in text:
        kept.append(character)
        if character == ">":
            end = "".join(kept[-LONGEST_TAG:])
            closed = next((tag for tag in ALL_TAGS if end.endswith(tag)), "")
            del kept[len(kept) - len(closed) :]
    return "".join(kept)


def render_documents(documents: Iterable[Document]) -> str:
    """The observation that follows a search: every document in its own tags, the documents' own tags removed."""
    return " ".join(f"{DOCUMENT_OPEN} {strip_tags(document.text)} {DOCUMENT_CLOSE}" for document in documents)


def question_prompt(question: Question) -> str:
    """The user message for a question: its text, its options, its context documents, its length instruction."""
    parts = [question.text]
    parts += [f"({letter}) {option}" for letter, option in question.options.items()]
    if question.context:
        parts.append(render_documents(question.context))
    if question.length is not None:
        bound = "" if question.length.mode == "exact" else "at most "
        parts.append(f"Think for {bound}{question.length.tokens} tokens.")
    return " ".join(parts)
