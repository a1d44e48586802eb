"""Text from outside never carries a tag of the protocol, however it is nested."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.prompting import ALL_TAGS, strip_tags

fragments = st.lists(
    st.sampled_from([*ALL_TAGS, "<", "</", ">", "think", "search", "call", "a", " ", "</sea", "rch>"]), max_size=30
).map("".join)


def removed_until_nothing_changes(text: str) -> str:
    while True:
        stripped = text
        for tag in ALL_TAGS:
            stripped = stripped.replace(tag, "")
        if stripped == text:
            return text
        text = stripped


@given(fragments)
def test_one_pass_removes_what_repeated_removal_removes(text):
    assert strip_tags(text) == removed_until_nothing_changes(text)


def test_deep_nesting_costs_one_pass():
    """Repeated removal would need 50,000 passes over 0.4 MB, which is minutes."""
    assert strip_tags("</sea" * 50_000 + "</search>" + "rch>" * 50_000) == ""
