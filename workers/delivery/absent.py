"""Which named queues are not there: each is asked for now and then, not all the time, and told once."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from jobqueue.quantities import format_duration

log = logging.getLogger(__name__)


class Absent:
    """What a worker knows of named queues that are not there, over all connections. Main thread only.

    Args:
        pace: how long after one look another one is due.
        clock: now, in seconds.
    """

    def __init__(self, pace: timedelta, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace, self._clock = pace, clock
        self._due: dict[str, float] = {}

    def is_due(self, queue: str) -> bool:
        """Tell whether it is to be looked for now."""
        return self._clock() >= self._due.get(queue, 0.0)

    def note(self, queue: str, *, is_there: bool) -> None:
        """Note what a look has found."""
        if is_there:
            self._due.pop(queue, None)
            return
        if queue not in self._due:
            log.warning("queue.not_there", extra={"queue": queue, "again_every": format_duration(self._pace)})
        self._due[queue] = self._clock() + self._pace.total_seconds()
