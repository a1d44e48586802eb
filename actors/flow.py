"""How many groups one engine may have in hand: additive increase, multiplicative decrease, steered by its KV cache.

```
 a group ends ─▶ KV cache under 60 % full ─▶ window + 1, while the window was what held groups back
              ─▶ preempted, or over 95 % ──▶ window ÷ 2, at most once per generation of groups
```
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Below this a further group fits: groups grow while they run, so what is free now is not free later.
KV_GROW = 0.6

# From here on the next tokens push somebody out; a preempted request computes its whole context again.
KV_FULL = 0.95

# An engine decodes half a start's window at once. What goes beyond twice the start only waits inside of it while its lease runs.
CEILING = 2


@dataclass(slots=True)
class GroupWindow:
    """Pure: it is told when groups begin and end, and says whether there is room.

    Groups that were in hand when the window was halved ran under the old one, so their ends do not halve it again.

    Example:
        >>> window = GroupWindow(start=4)
        >>> for _ in range(4): window.begin()
        >>> window.room, window.end(kv_use=0.2, preemptions=0), window.size
        (0, None, 5)
        >>> window.end(kv_use=0.97, preemptions=3), window.size, window.end(kv_use=0.97, preemptions=5), window.size
        (None, 2, None, 2)
    """

    start: int
    size: int = field(init=False)
    in_hand: int = 0
    _preemptions: int = 0
    _before_halving: int = 0  # groups in hand that began under a window since halved

    def __post_init__(self) -> None:
        self.start = max(1, self.start)
        self.size = self.start

    @property
    def room(self) -> int:
        return max(0, self.size - self.in_hand)

    def begin(self) -> None:
        self.in_hand += 1

    def end(self, kv_use: float | None = None, preemptions: int | None = None) -> None:
        """A group left, and, if it finished, what its engine said with it: memory use, and preemptions since the engine began."""
        was_the_limit = self.in_hand >= self.size
        self.in_hand -= 1
        old = self._before_halving > 0
        self._before_halving = max(0, self._before_halving - 1)
        if kv_use is None or preemptions is None:
            return
        pressed = preemptions > self._preemptions or kv_use >= KV_FULL
        self._preemptions = max(self._preemptions, preemptions)
        if pressed and not old:
            self.size = max(1, self.size // 2)
            self._before_halving = self.in_hand
        elif not pressed and kv_use < KV_GROW and was_the_limit:
            self.size = min(self.size + 1, CEILING * self.start)
