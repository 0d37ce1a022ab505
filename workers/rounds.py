"""A step that is taken again and again, on a thread of its own."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread, current_thread
from typing import Final

from jobqueue.errors import JobqueueError
from workers.seldom import Seldom

log = logging.getLogger(__name__)

# A server may be away for hours.
TELL_EVERY_SECONDS: Final = 60.0


class Rounds:
    """One such thread, from `start` until `close`.

    Args:
        name: of the thread.
        step: what is done in each round; what it raises keeps nobody from the next one. It is logged when it begins,
            once a minute at most while it goes on, and when it is over.
        every: how long to wait before each round, asked anew each time.
        is_first_due: whether the first one comes without that.
    """

    def __init__(
        self, name: str, step: Callable[[], object], *, every: Callable[[], timedelta], is_first_due: bool = False
    ) -> None:
        self._step, self._every, self._is_due = step, every, is_first_due
        self._is_failing = False
        self._seldom = Seldom(TELL_EVERY_SECONDS)
        self._closed = Event()
        self._thread = Thread(target=self._go_round, name=name, daemon=True)

    def start(self) -> None:
        """Begin to wait for the first round."""
        self._thread.start()

    def take(self) -> None:
        """Take one round now, on the calling thread; only before the start."""
        try:
            self._step()
        except Exception as error:  # noqa: BLE001 - the edge of a thread: it must not end the next rounds
            self._tell(error)
        else:
            if self._is_failing:
                log.info("round.succeeded", extra={"round": self._thread.name})
            self._is_failing = False

    def close(self, *, within: timedelta | None = None) -> None:
        """Have no other round follow, and wait for one that is on its way, so long at most; a step may say so too."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not current_thread():
            self._thread.join(None if within is None else within.total_seconds())

    def _go_round(self) -> None:
        while not self._closed.wait(0 if self._is_due else self._every().total_seconds()):
            self._is_due = False
            self.take()

    def _tell(self, error: Exception) -> None:
        self._seldom.note()
        count = self._seldom.take(time.monotonic())
        if not count:
            return
        self._is_failing = True
        said = {"round": self._thread.name, "count": count}
        if isinstance(error, JobqueueError):
            log.warning("round.failed", extra={**said, "error": error.message})
        else:
            log.error("round.failed", extra=said, exc_info=error)
