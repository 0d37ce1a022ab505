"""How often somebody may ask: so many at once, and so many a second after that."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

PER_SECOND: Final = 200.0
AT_ONCE: Final = 1000.0
_REMEMBERED: Final = 10_000


class Pace:
    """Counts by name, in a bounded memory; from any thread.

    Args:
        per_second: after the first `at_once`.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        per_second: float = PER_SECOND,
        at_once: float = AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second, self._at_once, self._clock = per_second, at_once, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, name: str) -> bool:
        """Tell whether this one may ask now, and count it."""
        now = self._clock()
        with self._lock:
            left, at = self._left.pop(name, (self._at_once, now))
            left = min(self._at_once, left + (now - at) * self._per_second)
            is_allowed = left >= 1
            self._left[name] = (left - is_allowed, now)
            if len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)
            return is_allowed
