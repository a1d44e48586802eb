"""This system's own format: the fields of `tasks.questions.Question`, one object per line, none beside them."""

from __future__ import annotations

from tasks.formats.format import Fields, Format, Source, needs, only_filled
from tasks.rows import COLUMNAR, Row, Shape


def _own(row: Row, source: Source) -> Fields:
    fields: Fields = row.fields
    if source.columnar:  # a table has every column in every row, and null where there is nothing
        fields = only_filled(fields)
        if options := fields.get("options"):
            fields["options"] = only_filled(options)
    return fields


OWN = Format(
    "medr3", "this system's own", needs("id", "text", "kind", "gold"), _own, frozenset({Shape.LINES, Shape.ARRAY, *COLUMNAR}),
    "gold", shows_context=True,
)  # fmt: skip
