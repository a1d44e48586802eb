"""Held-out questions about what training knows measure memory: such a set is refused before anything starts."""

from __future__ import annotations

from medr3.errors import UserError
from tasks.world import Universe

SHOWN = 3


def refuse_leaks(universe: Universe) -> None:
    """No held-out world may share an entity, a collection or a document with a training world; UserError where one does."""
    trained = {name for world in universe.training for names in world.entities.values() for name in names}
    seen = {world.collection for world in universe.training} | {d.id for world in universe.training for d in world.documents}
    for purpose, world in universe.held_out.items():
        asked = {name for names in world.entities.values() for name in names}
        known = {world.collection} | {document.id for document in world.documents}
        if shared := sorted(asked & trained) or sorted(known & seen):
            raise UserError(
                f"world: the held-out world {purpose!r} shares {_some(shared)} with training, so its scores would measure memory:"
                " it must be made of names that are held out"
            )


def _some(shared: list[str]) -> str:
    more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
    return ", ".join(map(repr, shared[:SHOWN])) + more
