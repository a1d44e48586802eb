"""Whose turn is it? Shares kept exactly and without chance, so that a batch is mixed as the weights say and not as luck has it."""

from __future__ import annotations

from collections.abc import Mapping


class Turns:
    """Wheels of names that take turns by weight: after any number of turns, each name is less than one turn from its share.

    Tijdeman's rule (The chairman assignment problem, 1980), with `due = share · (turns so far + 1) − own turns so far` for k names:
    of those with `due ≥ 1/(2k − 2)`, the one whose deadline comes first, `(1 − 1/(2k − 2) − due) / share` turns from now. Random draws
    would be off by the root of the number of turns.

    Example:
        >>> turns = Turns()
        >>> "".join(turns.next("wheel", {"a": 3, "b": 1}) for _ in range(8))
        'aabaaaba'
    """

    def __init__(self) -> None:
        self._taken: dict[str, dict[str, int]] = {}

    def next(self, wheel: str, weights: Mapping[str, float]) -> str:
        """The name whose turn it is on a wheel; its weights should stay as they are, its name tells it from other wheels."""
        names = [name for name, weight in weights.items() if weight > 0]
        if not names:
            raise ValueError(f"{wheel}: no name has a weight above 0")
        taken = self._taken.setdefault(wheel, {})
        chosen = names[0] if len(names) == 1 else _next(names, weights, taken)
        taken[chosen] = taken.get(chosen, 0) + 1
        return chosen

    def snapshot(self) -> dict[str, dict[str, int]]:
        """JSON for the manifest."""
        return {wheel: dict(taken) for wheel, taken in self._taken.items()}

    def restore(self, snapshot: Mapping[str, Mapping[str, int]]) -> None:
        self._taken = {wheel: dict(taken) for wheel, taken in snapshot.items()}


def _next(names: list[str], weights: Mapping[str, float], taken: Mapping[str, int]) -> str:
    total = sum(weights[name] for name in names)
    turn = sum(taken.get(name, 0) for name in names) + 1
    slack = 1 / (2 * len(names) - 2)
    shares = {name: weights[name] / total for name in names}
    due = {name: shares[name] * turn - taken.get(name, 0) for name in names}
    # The dues add up to 1, so one of them is at least 1/k ≥ slack; the tolerance is for rounding.
    ready = [name for name in names if due[name] >= slack - 1e-9]
    return min(ready, key=lambda name: (1 - slack - due[name]) / shares[name])
