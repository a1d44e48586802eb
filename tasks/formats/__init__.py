"""Formats of questions as they are published, one entry each; `tasks.reading` reads files by them.

Example:
    >>> sorted({each.name for each in FORMATS})[:4]
    ['2wiki', 'bioasq', 'ehrnoteqa', 'hotpotqa']
"""

from tasks.formats.choices import CHOICES, MIRAGE_SETS
from tasks.formats.format import Fields, Format, NotAsked, RowRefused, Source, content_id
from tasks.formats.literature import LITERATURE
from tasks.formats.multihop import MULTIHOP
from tasks.formats.open_ended import OPEN_ENDED
from tasks.formats.own import OWN

# The first that fits a file's first row is its format, so the more particular ones stand first.
FORMATS: tuple[Format, ...] = (OWN, *CHOICES, *LITERATURE, *MULTIHOP, *OPEN_ENDED)
NAMES = tuple(dict.fromkeys(each.name for each in FORMATS))

__all__ = ["FORMATS", "MIRAGE_SETS", "NAMES", "OWN", "Fields", "Format", "NotAsked", "RowRefused", "Source", "content_id"]
