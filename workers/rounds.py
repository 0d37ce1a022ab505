"""A step that is taken again and again, on a thread of its own."""

import logging
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread, current_thread

log = logging.getLogger(__name__)


class Rounds:
    """One such thread, from `start` until `close`.

    Args:
        name: of the thread.
        step: what is done in each round; what it raises is logged, and keeps nobody from the next one.
        every: how long to wait before each round, asked anew each time.
        is_first_due: whether the first one comes without that.
    """

    def __init__(
        self, name: str, step: Callable[[], object], *, every: Callable[[], timedelta], is_first_due: bool = False
    ) -> None:
        self._step, self._every, self._is_due = step, every, is_first_due
        self._closed = Event()
        self._thread = Thread(target=self._go_round, name=name, daemon=True)

    def start(self) -> None:
        """Begin to wait for the first round."""
        self._thread.start()

    def close(self, *, within: timedelta | None = None) -> None:
        """Have no other round follow, and wait for one that is on its way, so long at most; a step may say so too."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not current_thread():
            self._thread.join(None if within is None else within.total_seconds())

    def _go_round(self) -> None:
        while not self._closed.wait(0 if self._is_due else self._every().total_seconds()):
            self._is_due = False
            try:
                self._step()
            except Exception:  # the edge of a thread: what upsets one round must not end the next ones
                log.exception("round.failed", extra={"round": self._thread.name})
