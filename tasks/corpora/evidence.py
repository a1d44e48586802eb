"""The level of evidence, I to VI, that follows from what a publication says it is."""

from __future__ import annotations

from collections.abc import Iterable

# Names of PubMed's publication types (MeSH V03). What names a journal article, its funding or its language says nothing of evidence.
LEVEL_OF_TYPE = {
    "Meta-Analysis": 1, "Network Meta-Analysis": 1, "Systematic Review": 1,
    "Randomized Controlled Trial": 2, "Equivalence Trial": 2, "Pragmatic Clinical Trial": 2, "Practice Guideline": 2, "Guideline": 2,
    "Controlled Clinical Trial": 3, "Adaptive Clinical Trial": 3, "Clinical Trial": 3, "Clinical Trial, Phase I": 3,
    "Clinical Trial, Phase II": 3, "Clinical Trial, Phase III": 3, "Clinical Trial, Phase IV": 3,
    "Observational Study": 4, "Clinical Study": 4, "Twin Study": 4,
    "Case Reports": 5,
    "Review": 6, "Scientific Integrity Review": 6, "Editorial": 6, "Letter": 6, "Comment": 6, "News": 6, "Lecture": 6, "Address": 6,
    "Interview": 6, "Personal Narrative": 6, "Consensus Development Conference": 6, "Consensus Development Conference, NIH": 6,
}  # fmt: skip
# Cohorts and experiments in vitro are no publication types; indexers say them by a heading. Used where no type says more.
LEVEL_OF_HEADING = {
    "Cohort Studies": 4, "Case-Control Studies": 4, "Retrospective Studies": 4, "Prospective Studies": 4, "Longitudinal Studies": 4,
    "Follow-Up Studies": 4, "Cross-Sectional Studies": 4, "In Vitro Techniques": 6,
}  # fmt: skip


def evidence(types: Iterable[str], headings: Iterable[str] = ()) -> tuple[str, int | None]:
    """What counts for a publication and its level: the best that it says of itself, else by its headings, else none.

    Example:
        >>> evidence(["Journal Article", "Randomized Controlled Trial", "Review"])
        ('Randomized Controlled Trial', 2)
        >>> evidence(["Journal Article"], ["Humans", "Cohort Studies"])
        ('Cohort Studies', 4)
        >>> evidence(["Journal Article"])
        ('Journal Article', None)
    """
    types = list(types)
    for names, levels in ((types, LEVEL_OF_TYPE), (headings, LEVEL_OF_HEADING)):
        if known := [name for name in names if name in levels]:
            best = min(known, key=levels.__getitem__)
            return best, levels[best]
    return (types[0] if types else ""), None
