"""How fast are files of questions and articles read, and how long does the look for evaluation questions among training ones take?

Everything is made up on the spot in the published layouts: MedMCQA's rows are as long as its own (some 590 bytes, explanations
included), PubMed's articles are 5 kB of XML. Seconds are a core's own (process time), so that others on the machine do not count.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from bench import data_graph
from bench.harness import Result, figure, interleaved, peak_growth, rate, ratio, result
from tasks.contamination import Contamination
from tasks.corpora import read_corpus
from tasks.questions import Question
from tasks.reading import read

ROWS = 190_000  # MedMCQA has 193,155
ROWS_PER_S = 100_000
XML_MB = 64
XML_MB_PER_S = 20
MOST_GROWTH_MB = 16  # one article and the parser's own buffers; the whole tree would take ten times the file
TRAINED, EVALUATED = 200_000, 10_000
CHECK_S = 60
REPETITIONS = 3
WORDS = [
    f"{a}{b}{c}"
    for a in "bdfgklmnprst"
    for b in ("a", "eo", "i", "ou")
    for c in ("nal", "rin", "tosis", "gen", "mab", "line", "x")
]


def run() -> Result:
    """Questions, articles and the check, each some times."""
    with tempfile.TemporaryDirectory() as folder:
        lines, array = _questions(Path(folder))
        xml = _articles(Path(folder))
        readings = interleaved(
            {
                "lines": _timed(lambda: sum(1 for _ in read(lines))),
                "array": _timed(lambda: sum(1 for _ in read(array))),
                "bare": _timed(lambda: sum(1 for line in lines.open("rb") if orjson.loads(line))),
                "xml": _timed(lambda: sum(1 for _ in read_corpus(xml))),
                "xml.gz": _timed(lambda: sum(1 for _ in read_corpus(xml.with_suffix(".xml.gz")))),
            },
            REPETITIONS,
            warm_up=1,
        )
        size = xml.stat().st_size / 1e6
        growth = [peak_growth(_reader, str(path)) / 1e6 for path in (xml, xml.with_suffix(".xml.gz"))]
    check, found = _check()
    graph_figures, graph_ratios = data_graph.measure()
    figures = [
        rate("MedMCQA's rows, JSON lines, to questions", ROWS, readings["lines"], "rows/s"),
        rate("the same rows as one JSON array", ROWS, readings["array"], "rows/s"),
        rate("the same lines parsed and dropped, for comparison", ROWS, readings["bare"], "rows/s"),
        rate("PubMed XML to documents", size, readings["xml"], "MB/s"),
        rate("PubMed XML packed by gzip, by its size unpacked", size, readings["xml.gz"], "MB/s"),
        figure(f"memory that {size:.0f} MB of XML add at most", max(growth), "MB"),
        figure(f"{EVALUATED:,} evaluation among {TRAINED:,} training questions", check, "s"),
        figure("planted ones found, of 300", found, ""),
        *graph_figures,
    ]
    return result(
        figures,
        [
            ratio("rows a second, over the goal", ROWS / readings["lines"].median / ROWS_PER_S, 1.0),
            ratio("MB of XML a second, over the goal", size / readings["xml"].median / XML_MB_PER_S, 1.0),
            ratio("memory added by XML, over what is allowed", max(growth) / MOST_GROWTH_MB, 1.0, at_most=True),
            ratio("seconds of the check, over what is allowed", check / CHECK_S, 1.0, at_most=True),
            *graph_ratios,
        ],
        ["seconds are process time of one core"],
        threads=1,
    )


def _timed(function: Callable[[], object]) -> Callable[[], float]:
    def step() -> float:
        started = time.process_time()
        function()
        return time.process_time() - started

    return step


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize()


def _questions(folder: Path) -> tuple[Path, Path]:
    rng = random.Random(0)
    rows = [json.dumps(_row(rng, i)) for i in range(ROWS)]
    lines, array = folder / "train.json", folder / "array.json"
    lines.write_text("\n".join(rows) + "\n")
    array.write_text("[" + ",\n".join(rows) + "]")
    return lines, array


def _row(rng: random.Random, number: int) -> dict[str, Any]:
    options = {f"op{letter}": _text(rng, 2) for letter in "abcd"}
    return {
        "question": _text(rng, 12), "exp": _text(rng, 40), "cop": rng.randint(1, 4), **options, "subject_name": "Anatomy",
        "topic_name": None, "id": f"{number:08x}-0bc3-494e-b6eb-2d4617245aef", "choice_type": "single",
    }  # fmt: skip


def _articles(folder: Path) -> Path:
    rng = random.Random(1)
    path = folder / "pubmed.xml"
    with path.open("w") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>\n')
        number = 0
        while file.tell() < XML_MB * 1_000_000:
            number += 1
            file.write(_article(rng, number))
        file.write("</PubmedArticleSet>\n")
    with gzip.open(path.with_suffix(".xml.gz"), "wb", compresslevel=5) as packed:
        packed.write(path.read_bytes())
    return path


def _article(rng: random.Random, number: int) -> str:
    sections = "".join(
        f'<AbstractText Label="{label}" NlmCategory="{label}">{_text(rng, 50)} (<i>p</i> &lt; 0.05).</AbstractText>\n'
        for label in ("BACKGROUND", "METHODS", "RESULTS", "CONCLUSIONS")
    )
    authors = "".join(
        f"<Author ValidYN=\"Y\"><LastName>{rng.choice(WORDS)}</LastName><Initials>A</Initials><AffiliationInfo><Affiliation>"
        f"{_text(rng, 8)}</Affiliation></AffiliationInfo></Author>\n"
        for _ in range(6)
    )  # fmt: skip
    headings = "".join(
        f'<MeshHeading><DescriptorName UI="D{i:06}" MajorTopicYN="N">{rng.choice(WORDS)}</DescriptorName></MeshHeading>\n'
        for i in range(12)
    )
    return (
        f'<PubmedArticle>\n<MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{number}</PMID>\n<Article PubModel="Print">'
        "<Journal><JournalIssue CitedMedium=\"Internet\"><PubDate><Year>2011</Year></PubDate></JournalIssue></Journal>\n"
        f"<ArticleTitle>{_text(rng, 12)}.</ArticleTitle>\n<Abstract>{sections}</Abstract>\n<AuthorList>{authors}</AuthorList>\n"
        '<PublicationTypeList><PublicationType UI="D016428">Journal Article</PublicationType></PublicationTypeList></Article>\n'
        f"<MeshHeadingList>{headings}</MeshHeadingList></MedlineCitation>\n</PubmedArticle>\n"
    )  # fmt: skip


def _reader(path: str) -> Callable[[], object]:
    """In a process of its own: what one file adds once the first article of another has loaded the parser."""
    from lxml import etree

    etree.fromstring("<a/>")
    return lambda: sum(1 for _ in read_corpus(Path(path)))


def _check() -> tuple[float, float]:
    """Seconds, and how many of 300 planted questions are found: the same, one word changed, one passage quoted."""
    rng = random.Random(2)
    evaluated = [_question(rng, f"e{i}", rng.choice((12, 40, 100))) for i in range(EVALUATED)]
    trained = [_question(rng, f"t{i}", rng.choice((12, 40, 100))) for i in range(TRAINED)]
    for i, original in enumerate(rng.sample(evaluated, 300)):
        words = original.text.split()
        if i % 3 == 1:
            words[len(words) // 2] = "other"
        if i % 3 == 2 and len(words) > 20:
            words = [*trained[i].text.split(), *words[:13]]
        trained[i] = original.model_copy(update={"id": f"t{i}", "text": " ".join(words)})
    started = time.process_time()
    check = Contamination(evaluated)
    check.train(_stream(trained))
    seen = check.seen()
    seconds = time.process_time() - started
    planted = {f"t{i}" for i in range(300)}
    return seconds, float(len({each.trained for each in seen} & planted))


def _stream(questions: list[Question]) -> Iterator[Question]:
    yield from questions


def _question(rng: random.Random, name: str, words: int) -> Question:
    options = {letter: _text(rng, 2) for letter in "ABCD"}
    return Question.model_validate({"id": name, "text": _text(rng, words), "kind": "choice", "gold": "A", "options": options})
