"""Do thinking and answer keep to the question's language? By script, and between Latin languages by their commonest words; no model.

What it cannot tell: languages that share a script other than Latin (Russian and Ukrainian, Arabic and Persian, Hindi and Marathi, the two
ways to write Chinese), Latin languages without a list here, and texts too short to contain common words. What it cannot tell, it does not
punish.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from rewards.earned import Earned
from rewards.findings import Findings
from rewards.phrases import names_one_of, stated
from rewards.text import own_thinking
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

# Drug names, gene symbols and units stay Latin in any language: up to this share of foreign words is no other language (reconstruction).
FOREIGN_TERMS = 0.3
# Fewer common words than this do not tell a language: "in" and "for" stand in many a title of another one.
ENOUGH_COMMON_WORDS = 3
# A Japanese term of this many characters may well be all Han (急性心筋梗塞); a sentence without any kana is Chinese.
LONGEST_HAN_TERM = 12

# One match is one word; scripts without spaces count by the character.
_SCRIPTS = {
    "latin": re.compile("[A-Za-z\u00aa-\u024f\u1e00-\u1eff]+"),
    "greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]{2,}"),  # one letter alone is a symbol: α, β, µ
    "cyrillic": re.compile("[\u0400-\u052f]+"),
    "hebrew": re.compile("[\u0590-\u05ff]+"),
    "arabic": re.compile("[\u0620-\u065f\u066e-\u06d3\u06d5-\u06ef\u06fa-\u06ff\u0750-\u077f]+"),
    "devanagari": re.compile("[\u0900-\u0963\u0966-\u097f]+"),
    "bengali": re.compile("[\u0980-\u09ff]+"),
    "tamil": re.compile("[\u0b80-\u0bff]+"),
    "thai": re.compile("[\u0e00-\u0e7f]"),
    "hangul": re.compile("[\u1100-\u11ff\uac00-\ud7af]+"),
    "kana": re.compile("[\u3041-\u30ff]"),
    "han": re.compile("[\u3400-\u9fff\uf900-\ufaff]"),
}

# Words that are among the commonest of one of these languages and of no other one here; no "von", "et" or "il", which stand in names,
# citations and interleukins.
_COMMON_WORDS = {
    word: language
    for language, listed in {
        "english": "the and to that which with this have are not been would should therefore because they their there its these",
        "german": "der das und ist nicht mit für auf ein eine einen dem den bei oder werden wird sind durch auch nach sich",
        "french": "les dans ainsi avec une qui sur pas aux cette sont ou être chez leur comme elle nous mais lorsque",
        "spanish": "el los las y pero muy hay cuando más también desde hasta donde según sin fue han eso ese esa",
        "italian": "gli della di che nel alla dei delle anche questo questa nella dal essere sono più perché degli viene ha",
        "portuguese": "não uma ao pelo pela também em seu sua num são os com está às isto isso essa ele ela",
        "dutch": "het een niet zijn dat voor ook wordt bij deze naar maar aan worden uit hij heeft op te waar",
    }.items()
    for word in listed.split()
}
_NO_WORD = str.maketrans(dict.fromkeys(".,;:!?()[]{}'\"*/", " "))


def language(question: Question, episode: Episode, findings: Findings, *, part: str = "both") -> Earned:
    """The share of the thinking and of the answer that is in the question's language (Med-R³, arXiv 2507.23541), their mean for "both".

    Letters, numbers and the gold phrase itself have no language. The thinking is the model's own, without queries and documents; where
    there is none, or no answer, that part earns 0. How Med-R³ measures it is not published in detail: a reconstruction.
    """
    if part not in ("thinking", "answer", "both"):
        raise ValueError(f"part must be thinking, answer or both, got {part!r}")
    parts = {}
    if part != "answer":
        parts["thinking"] = _share(own_thinking(episode.text), question.text)
    if part != "thinking":
        parts["answer"] = _answer_share(question, episode.answer)
    return Earned(sum(parts.values()) / len(parts), reason=", ".join(f"{name} {share:.2f}" for name, share in parts.items()))


def language_match(text: str, model: str) -> float:
    """How far a text is in the language of a model text, in [0, 1]; 1 where that cannot be told.

    Example:
        >>> english = "Which of these is the drug of choice for the patient with gout?"
        >>> language_match("Das ist nicht die Gicht, sondern der Rheumatismus und auch eine Sepsis.", english)
        0.0
        >>> language_match("痛风的首选药物是什么", english), language_match("痛风用 allopurinol", "痛风的首选药物是什么")
        (0.0, 1.0)
    """
    wanted = _profile(model)
    if not wanted.script:
        return 1.0
    said = _words_by_script(text)
    if wanted.script == "latin":
        return _script_share(said, "latin") * _latin_match(text, wanted.language)
    return _japanese_share(said) if wanted.script == "kana" else _script_share(said, wanted.script)


def _answer_share(question: Question, answer: str) -> float:
    if question.kind is not AnswerKind.TEXT:
        return 1.0 if answer.strip() else 0.0
    if names_one_of(stated(answer), (question.gold, *question.aliases)):
        return 1.0
    return _share(answer, question.text)


def _share(text: str, model: str) -> float:
    return language_match(text, model) if text.strip() else 0.0


class _Profile(NamedTuple):
    """The script and, where common words tell it, the Latin language of a text; "" where unknown."""

    script: str
    language: str


@lru_cache(maxsize=1024)  # every episode of a group is compared with one question
def _profile(model: str) -> _Profile:
    scripts = _words_by_script(model)
    if not scripts:
        return _Profile("", "")
    found = _common_words(model)
    ranking = found.most_common(2)
    tie = len(ranking) == 2 and ranking[0][1] == ranking[1][1]
    language = "" if tie or found.total() < ENOUGH_COMMON_WORDS else ranking[0][0]
    return _Profile("kana" if scripts["kana"] else scripts.most_common(1)[0][0], language)


def _words_by_script(text: str) -> Counter[str]:
    scripts = {"latin": _SCRIPTS["latin"]} if text.isascii() else _SCRIPTS
    counts = {name: len(script.findall(text)) for name, script in scripts.items()}
    return Counter({name: count for name, count in counts.items() if count})


def _script_share(said: Mapping[str, int], script: str) -> float:
    """Words of the script among all words; some foreign terms are forgiven."""
    total = sum(said.values())
    return min(1.0, said.get(script, 0) / total / (1 - FOREIGN_TERMS)) if total else 1.0


def _japanese_share(said: Mapping[str, int]) -> float:
    """Kana tell Japanese from Chinese; Han beside kana are Japanese."""
    if not said.get("kana") and said.get("han", 0) > LONGEST_HAN_TERM:
        return 0.0
    merged = {**said, "kana": said.get("kana", 0) + said.get("han", 0), "han": 0}
    return _script_share(merged, "kana")


def _latin_match(text: str, language: str) -> float:
    """The share of common words that are of the language; 1 where the text has too few of them or the language is unknown."""
    said = _common_words(text)
    if not language or said.total() < ENOUGH_COMMON_WORDS:
        return 1.0
    return min(1.0, said[language] / said.total() / (1 - FOREIGN_TERMS))


def _common_words(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    written = Counter(text.casefold().translate(_NO_WORD).split())
    for word in written.keys() & _COMMON_WORDS.keys():
        found[_COMMON_WORDS[word]] += written[word]
    return found
