"""What is fuzzed: a reader with its samples, and the errors that its documentation allows it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from medr3.errors import UserError
from tests.fuzz.mutation import Change

UNCHANGED = 0.01  # share of cases that are a sample as it is: these must be read, so a target that refuses everything shows
LONGEST_LINE = 4_000  # characters of a refusal: more is no line that anybody reads


def _is_line(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and len(text) <= LONGEST_LINE


class Refused(Exception):
    """Stands for the error of a reader whose module is imported only when it is run."""


class Broken(AssertionError):
    """The reader kept its contract of errors, but what it gave back is not what it promises."""


@dataclass
class Target:
    """One reader. `run` reads a case and returns; what it refuses it refuses with one of `refuses`, in one line.

    `run` may raise `Broken` where the reader promises more than not to fail.
    """

    name: str
    make_samples: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    change: Change
    refuses: tuple[type[BaseException], ...] = ()
    share: float = 1.0  # of the cases of all targets; slow readers get fewer
    many_lines: bool = False  # the refusal may have a line for each problem
    samples_refused: bool = field(default=False)  # some samples are broken twins

    @cached_property
    def samples(self) -> list[bytes]:
        return list(self.make_samples())

    def warm(self) -> None:
        """What a reader loads at its first case counts for no case."""
        with suppress(Exception):
            self.run(self.samples[0])

    def case(self, seed: int, number: int) -> bytes:
        """Case `number` under `seed`, whatever came before."""
        rng = random.Random(f"{seed}/{self.name}/{number}")
        sample = rng.choice(self.samples)
        return sample if rng.random() < UNCHANGED else self.change(rng, sample, self.samples)

    def outcome(self, case: bytes) -> str:
        """`read` or `refused`; everything else is raised."""
        try:
            self.run(case)
        except Broken:
            raise
        except self.refuses as refusal:
            lines = refusal.lines() if isinstance(refusal, UserError) else [str(refusal)]
            if (len(lines) > 1 and not self.many_lines) or not all(map(_is_line, lines)):
                raise Broken(
                    f"the refusal is not one line: {str(refusal)[:300]!r} ({len(str(refusal))} characters)"
                ) from refusal
            return "refused"
        return "read"


def text_of(case: bytes) -> str:
    """A case as text, halves of characters included where it spells them."""
    try:
        return case.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return case.decode("utf-8", "replace")
