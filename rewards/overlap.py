"""How much of a reference does an answer say? Exact match, BLEU, ROUGE-L and F1 over words, all on one scale from 0 to 100."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from rewards.earned import Earned
from rewards.findings import Findings
from rewards.format import is_well_formed
from rewards.phrases import normalise, same_phrase, stated
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

# Med-U1 compares n-grams of one to three words.
LONGEST_NGRAM = 3
# Above it, Med-U1 calls a merged score right.
PASS_MARK = 45.0

# Chinese and Japanese write no spaces between words, so there every character is one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """The words of a phrase, normalised as for an exact match."""
    return _WORD.findall(normalise(text))


def exact_match(answer: str, reference: str) -> float:
    """100 for the same words, else 0."""
    return 100.0 * same_phrase(answer, reference)


def bleu(answer: str, reference: str) -> float:
    """BLEU(1–3) = BP · exp(mean of ln p_n), BP = min(1, e^{1 − r/c}), over the n-grams that an answer of c words can have.

    An order without a hit counts as p_n = 1 / (2^k · total), k = 1 for the first such order, 2 for the second (the smoothing of sacreBLEU's
    sentence scores); an answer that shares no word scores 0.

    Example:
        >>> round(bleu("acute myocardial infarction", "old myocardial infarction"), 2)
        55.03
    """
    said, wanted = words(answer), words(reference)
    if not set(said) & set(wanted):
        return 0.0
    logarithms, misses = [], 0
    for order in range(1, min(LONGEST_NGRAM, len(said)) + 1):
        total = len(said) - order + 1
        hits = (_ngrams(said, order) & _ngrams(wanted, order)).total()
        misses += not hits
        logarithms.append(math.log(hits / total if hits else 1 / (2**misses * total)))
    brevity = min(0.0, 1 - len(wanted) / len(said))
    return min(100.0, 100 * math.exp(brevity + sum(logarithms) / len(logarithms)))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words.

    Example:
        >>> round(rouge_l("acute infarction of heart muscle", "infarction of the heart"), 1)  # 3 common, of 5 and of 3
        75.0
    """
    said, wanted = words(answer), words(reference)
    return _f1(_longest_common_subsequence(said, wanted), len(said), len(wanted))


def token_f1(answer: str, reference: str) -> float:
    """F1 over the words that both have, each as often as both have it."""
    said, wanted = words(answer), words(reference)
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def merged(answer: str, reference: str) -> float:
    """m = ½ · exact match + ½ · BLEU(1–3), both on 0–100 (Med-U1, arXiv 2506.12307)."""
    return (exact_match(answer, reference) + bleu(answer, reference)) / 2


METRICS = {"merge": merged, "exact": exact_match, "bleu": bleu, "rouge_l": rouge_l, "f1": token_f1}


def text_overlap(
    question: Question,
    episode: Episode,
    findings: Findings,
    *,
    metric: str = "merge",
    discrete: bool = True,
    pass_mark: float = PASS_MARK,
) -> Earned:
    """The best overlap m with the gold text or an alias: +1 if m > `pass_mark` else −1, or if not `discrete`, m / 100.

    0 for a question that is not about a text. A malformed episode earns what no overlap earns.
    """
    if metric not in METRICS or not 0 <= pass_mark <= 100:
        raise ValueError(f"needs a metric of {', '.join(METRICS)} and 0 ≤ pass_mark ≤ 100, got {metric!r} and {pass_mark}")
    if question.kind is not AnswerKind.TEXT:
        return Earned(0.0, reason=f"not for {question.kind.value} answers")
    if not is_well_formed(episode):
        return Earned(-1.0 if discrete else 0.0, reason="malformed, so no answer counts")
    said = stated(episode.answer)
    best = max(METRICS[metric](said, reference) for reference in (question.gold, *question.aliases))
    value = (1.0 if best > pass_mark else -1.0) if discrete else best / 100
    return Earned(value, reason=f"{metric} {best:.1f} of 100")


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _f1(common: int, said: int, wanted: int) -> float:
    return 200.0 * common / (said + wanted) if common else 0.0


def _longest_common_subsequence(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Its length, with a row of the table held in the bits of one number, so that long answers cost linear time.

    A bit that is 0 in `row` marks a word of `wanted` at which the length grows (Hyyrö's bit-parallel form).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(wanted)) - 1
    row = every
    for word in said:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
    return len(wanted) - row.bit_count()
