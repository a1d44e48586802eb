"""Does a turn say the same over and over? Told by token ids alone, from the end of the turn."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PATTERN = 64  # tokens: a sentence or two; models that loop repeat a sentence at most
TIMES = 4  # honest text may say a thing three times
FEWEST_TOKENS = 32  # "0000 0000" and rows of dashes are honest too, up to here


def repeats_itself(token_ids: Sequence[int]) -> bool:
    """Whether the last tokens are one pattern, `TIMES` times or more, over at least `FEWEST_TOKENS`.

    Example:
        >>> repeats_itself([7, 8, *[1, 2, 3] * 11]), repeats_itself([7, 8, *[1, 2, 3] * 5]), repeats_itself(range(100))
        (True, False, False)
    """
    for pattern in range(1, LONGEST_PATTERN + 1):
        length = max(TIMES * pattern, FEWEST_TOKENS)
        if length > len(token_ids):
            return False
        tail = token_ids[len(token_ids) - length :]
        if tail[pattern:] == tail[:-pattern]:
            return True
    return False
