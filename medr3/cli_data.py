"""`medr3 data`: questions from files as they are published."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medr3.cli_common import Json
from medr3.cli_data_making import coldstart, extract, synthesize
from medr3.errors import UserError

if TYPE_CHECKING:
    from medr3.data_check import Counts, DataCheck
    from tasks.lengths import LengthMixture
    from tasks.quarantine import Quarantine

data = typer.Typer(help="Read, check and make questions.", no_args_is_help=True, rich_markup_mode=None)
data.command("synthesize")(synthesize)
data.command("extract")(extract)
data.command("coldstart")(coldstart)

BAD_ROWS_EXIT = 1
SHOWN_SEEN = 10
HOWS = {"same": "word for word", "near": "nearly", "passage": "in a passage of 13 words"}

Files = Annotated[list[str], typer.Argument(metavar="FILES...", help="[FORMAT:]PATH[@SPLIT] of files or folders of questions")]
Format = Annotated[
    str, typer.Option("--format", help="of files whose first row does not tell it; medr3 data formats lists them")
]
AllowBad = Annotated[int, typer.Option(min=0, help="so many malformed rows are no failure")]
QuarantineFile = Annotated[Path, typer.Option(help="where malformed rows are written, each with its place and reason")]
KEPT = Path("quarantine.jsonl")


@data.command("formats")
def formats() -> None:
    """List the formats of questions and of corpora that can be read."""
    from tasks.corpora import CORPUS_FORMATS
    from tasks.formats import FORMATS

    for each in FORMATS:
        print(f"{each.name:<16} {each.title:<34} {', '.join(sorted(shape.value for shape in each.shapes))}")
    print(f"{'corpora:':<16} {', '.join(CORPUS_FORMATS)}")


@data.command("check")
def check(
    files: Files,
    against: Annotated[
        list[str] | None, typer.Option(help="what will be evaluated: is it in the files? May be repeated")
    ] = None,
    format_: Format = "",
    allow_bad: AllowBad = 0,
    quarantine: QuarantineFile = KEPT,
    as_json: Json = False,
) -> None:
    """Count what files hold, name every malformed row, and look for evaluation questions among training questions."""
    from medr3.data_check import check as check_files
    from tasks.rows import FileRefused

    try:
        found = check_files(files, against or [], format_, quarantine)
    except FileRefused as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or quarantine}: {error.strerror}") from None
    print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(found)))
    _tell_malformed(found.quarantine, allow_bad)


@data.command("corpus")
def corpus(
    paths: Annotated[list[Path], typer.Argument(metavar="PATHS...", help="files or folders of documents")],
    format_: Annotated[
        str, typer.Option("--format", help="documents, pubmed or text; told by the names of files if left out")
    ] = "",
    chunk: Annotated[int, typer.Option(min=0, help="cut documents into pieces of so many characters; 0: as they are")] = 0,
    overlap: Annotated[int, typer.Option(min=0, help="of them that the next piece repeats")] = 200,
    allow_bad: AllowBad = 0,
    quarantine: QuarantineFile = KEPT,
    as_json: Json = False,
) -> None:
    """Count what bodies of literature hold, and name every malformed row, before an index is built."""
    from pydantic import ValidationError

    from medr3.corpus_check import check_corpus
    from tasks.corpora import Chunking
    from tasks.quarantine import Quarantine
    from tasks.rows import FileRefused

    try:
        chunking = Chunking(size=chunk, overlap=overlap) if chunk else None
        with Quarantine(quarantine) as kept:
            found = [check_corpus(path, format_, chunking, kept).as_dict() for path in paths]
    except FileRefused as error:
        raise UserError(str(error)) from None
    except ValidationError as error:
        raise UserError(
            f"--chunk {chunk} --overlap {overlap}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
    except OSError as error:
        raise UserError(f"{error.filename or quarantine}: {error.strerror}") from None
    if as_json:
        print(json.dumps({"corpora": found, "left_out": kept.left_out, "malformed": kept.malformed}, indent=2))
    for each in [] if as_json else found:
        levels = ", ".join(f"{name} {count:,}" for name, count in each["levels"].items() if count) or "–"
        years = f"; {each['years'][0]} to {each['years'][1]}" if each["years"] else ""
        print(
            f"{each['path']}: {each['documents']:,} documents of {each['characters']:,} characters{years}; evidence levels: {levels};"
        )
        print(f"  {each['retracted']:,} retracted, {each['duplicate_ids']:,} ids that came before")
    for reason, count in () if as_json else kept.left_out.items():
        print(f"left out: {count:,} {reason}")
    _tell_malformed(kept, allow_bad)


@data.command("import")
def import_(
    files: Files,
    out: Annotated[Path, typer.Option(help="a new .jsonl file of questions in this system's own format")],
    format_: Format = "",
    with_context: Annotated[
        bool, typer.Option("--with-context", help="put abstracts, notes and paragraphs into the prompt")
    ] = False,
    length: Annotated[str, typer.Option(help="Med-U1's instructions of length, by shares: exact=1,at_most=1,free=1")] = "",
    tokens: Annotated[str, typer.Option(help="the range that lengths are drawn from")] = "100-4000",
    seed: Annotated[int, typer.Option(help="which question gets which length")] = 0,
    against: Annotated[
        list[str] | None, typer.Option(help="leave out what stands, or nearly stands, in these; may be repeated")
    ] = None,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="a question may come twice")] = False,
    allow_bad: AllowBad = 0,
    quarantine: QuarantineFile = KEPT,
) -> None:
    """Write questions of any format into one file that training and evaluation read."""
    from medr3.data_check import import_questions
    from tasks.rows import FileRefused

    if out.exists():
        raise UserError(f"--out {out}: is there already: name a new file")
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: let its name end with .jsonl")
    lengths = _length_mixture(length, tokens) if length else None
    try:
        written, counts, kept, dropped = import_questions(
            files, out, format_=format_, with_context=with_context, lengths=lengths, seed=seed, allow_bad=allow_bad,
            keep_duplicates=keep_duplicates, quarantine=quarantine, against=against or [],
        )  # fmt: skip
    except FileRefused as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}") from None
    left_out = sum(sum(each.left_out.values()) for each in counts)
    duplicates = 0 if keep_duplicates else sum(each.duplicates for each in counts)
    _tell_malformed(kept, allow_bad)
    if not written:
        raise UserError(f"{', '.join(files)}: holds no question: nothing was written")
    print(f"{written:,} questions in {out}; {duplicates:,} duplicates and {left_out:,} rows without a question left out")
    if against:
        print(f"{dropped:,} left out because an evaluation on {', '.join(against)} would see them again")


def _length_mixture(length: str, tokens: str) -> LengthMixture:
    from pydantic import ValidationError

    from tasks.lengths import LengthMixture

    try:
        shares = {name.strip(): float(share) for name, share in (each.split("=") for each in length.split(","))}
        shortest, longest = (int(each) for each in tokens.split("-"))
        if not shares.keys() <= {"exact", "at_most", "free"}:
            raise ValueError
        # What is not named gets no share.
        return LengthMixture.model_validate(
            {"exact": 0, "at_most": 0, "free": 0, **shares, "shortest": shortest, "longest": longest}
        )
    except ValidationError as error:
        raise UserError(
            f"--length {length} --tokens {tokens}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
    except ValueError:
        raise UserError(
            f"--length {length} --tokens {tokens}: must be such as --length exact=1,at_most=1,free=2 --tokens 100-4000"
        ) from None


def _tell_malformed(kept: Quarantine, allow_bad: int) -> None:
    """Malformed rows on stderr, and the exit code that says whether there are more than allowed."""
    for each in kept.first:
        print(f"medr3: {each}", file=sys.stderr)
    if more := kept.malformed - len(kept.first):
        print(f"medr3: and {more:,} more malformed rows", file=sys.stderr)
    if kept.malformed:
        print(f"medr3: {kept.malformed:,} malformed rows were written to {kept.path}", file=sys.stderr)
    if kept.malformed > allow_bad:
        raise typer.Exit(BAD_ROWS_EXIT)


def _lines(found: DataCheck) -> list[str]:
    from medr3.data_check import KINDS

    heads = ("", "source", "questions", *KINDS, "duplicates", "left out", "malformed")
    rows = [_row(each) for each in [*found.files, *found.against]]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [_aligned(row, widths) for row in [heads, *rows]]
    reasons = Counter[str]()
    for counts in [*found.files, *found.against]:
        reasons.update(counts.left_out)
    lines += [f"left out: {count:,} {reason}" for reason, count in reasons.most_common()]
    return lines + _seen_lines(found) if found.against else lines


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    name, format_, *numbers = (
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([name, format_, *numbers])


def _row(counts: Counts) -> tuple[str, ...]:
    from medr3.data_check import KINDS

    numbers = (
        counts.questions,
        *(counts.kinds[kind] for kind in KINDS),
        counts.duplicates,
        sum(counts.left_out.values()),
        counts.malformed,
    )
    return (counts.name, ", ".join(counts.sources), *(f"{number:,}" for number in numbers))


def _seen_lines(found: DataCheck) -> list[str]:
    asked, hows = sum(each.questions for each in found.against), Counter(each.how for each in found.seen)
    how = ", ".join(f"{hows[name]:,} {words}" for name, words in HOWS.items())
    lines = [f"{len(found.seen):,} of {asked:,} evaluation questions are among the others: {how}"]
    lines += [f"  {each.evaluated}  {each.how} {each.share:.2f}  {each.trained}" for each in found.seen[:SHOWN_SEEN]]
    if more := len(found.seen) - SHOWN_SEEN:
        lines += [f"  and {more:,} more: --json lists all"] if more > 0 else []
    return lines
