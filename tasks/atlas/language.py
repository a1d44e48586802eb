"""The words of the large world: names, relations and how they are put, specialties, kinds of publication."""

from __future__ import annotations

import random
from dataclasses import dataclass

SPECIALTIES = (
    "cardiology", "dermatology", "endocrinology", "gastroenterology", "haematology", "immunology", "infectious disease",
    "nephrology", "neurology", "oncology", "pulmonology", "rheumatology",
)  # fmt: skip

_ONSETS = ("b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "pl", "tr")
SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in "aeiou")
ROOTS = len(SYLLABLES) ** 3
ALIASES_FROM = ROOTS // 2  # the other half of the combinations are second names
_STRIDE = 618_033  # odd and no multiple of five, so that it visits every combination of the million once, far apart

# By type, how names end. A type's endings are its own, so that a reader could tell a drug from a disease.
ENDINGS = {
    "disease": (" syndrome", " disease", " dysplasia"),
    "gene": ("1", "2", "7"),
    "drug": ("nib", "mab", "statin", "cillin"),
    "test": (" assay", " index"),
    "sign": ("lgia", "penia", "plegia"),
}
ALIAS_ENDINGS = {
    "disease": (" complex", " anomaly"),
    "gene": ("A", "B"),
    "drug": ("ex", "or"),
    "test": (" score", " ratio"),
    "sign": ("itis", "osis"),
}
PUBLICATION_TYPES = (
    "meta-analysis", "randomised controlled trial", "non-randomised trial", "cohort study", "case series", "expert opinion",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Relation:
    """How one type leads to another, and the words between the two names."""

    name: str
    subject: str
    object: str
    phrase: str


# Contested in the literature: each is written down in one to three documents, of which the strongest is right.
FACTS = (
    Relation("caused_by", "disease", "gene", "is caused by mutations of"),
    Relation("diagnosed_by", "disease", "test", "is diagnosed by"),
    Relation("presents_with", "disease", "sign", "presents with"),
    Relation("inhibited_by", "gene", "drug", "is inhibited by"),
    Relation("excluded_in", "drug", "disease", "must not be given in"),
    Relation("metabolised_by", "drug", "gene", "is metabolised by"),
    Relation("dosed_at", "drug", "dose", "is dosed in mg per kg at"),
    Relation("measures", "test", "gene", "measures the product of"),
    Relation("relieved_by", "sign", "drug", "is relieved by"),
)
# Uncontested: they stand in the entity's own profile.
ATTRIBUTES = (
    Relation("described_in", "disease", "year", "was first described in"),
    Relation("mapped_in", "gene", "year", "was mapped in"),
    Relation("approved_in", "drug", "year", "was approved in"),
    Relation("introduced_in", "test", "year", "was introduced in"),
    Relation("catalogued_in", "sign", "year", "was catalogued in"),
)
PHRASES = {relation.name: relation.phrase for relation in (*FACTS, *ATTRIBUTES)}
TYPES = {"disease": 0.3, "gene": 0.25, "drug": 0.25, "test": 0.1, "sign": 0.1}  # with their shares of the entities

OPENINGS = (
    "The question has been open for years.",
    "Earlier reports disagree with each other.",
    "Little was known about it before.",
    "Clinics differ in their practice.",
)
CLOSINGS = (
    "Further work is under way.",
    "The authors declare no conflict.",
    "Subgroups did not differ.",
    "Follow-up was complete.",
)


def root(number: int) -> str:
    """The number-th combination of three syllables, far from its neighbours' in sound; each number below a million has its own.

    Example:
        >>> root(0), root(1), len({root(number) for number in range(10_000)})
        ('bababa', 'tedralo', 10000)
    """
    place = number * _STRIDE % ROOTS
    size = len(SYLLABLES)
    return SYLLABLES[place // size**2] + SYLLABLES[place // size % size] + SYLLABLES[place % size]


def name(kind: str, number: int) -> str:
    """The name of an entity of the world, by its number among all entities.

    Example:
        >>> name("drug", 5), name("gene", 5), name("disease", 6)
        ('Cubevamab', 'CUBEVA7', 'Zadretro syndrome')
    """
    endings = ENDINGS[kind]
    return _styled(kind, root(number)) + endings[number % len(endings)]


def alias(kind: str, number: int) -> str:
    """Its second name, of a root that no first name has."""
    endings = ALIAS_ENDINGS[kind]
    return _styled(kind, root(ALIASES_FROM + number)) + endings[number % len(endings)]


def _styled(kind: str, word: str) -> str:
    return word.upper() if kind == "gene" else word.capitalize()


def misspelt(text: str, rng: random.Random) -> str:
    """The text with one slip of the keyboard in its longest word: two letters swapped, one lost, one doubled, one replaced.

    Example:
        >>> misspelt("dose of Bubitonib", random.Random(2))
        'dose of Bubitonbi'
    """
    word = max(text.split(), key=len)
    at = rng.randrange(1, len(word) - 1)
    slips = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + rng.choice("aeiourstln") + word[at + 1 :],
    )
    wrong = rng.choice([slip for slip in slips if slip != word])
    return text.replace(word, wrong, 1)
