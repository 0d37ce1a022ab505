"""Asking a queue again and again until it holds a message: waiting on a broker would hoard messages."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Mail

_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.2


def poll(fetch: Callable[[], Mail | None], *, timeout: timedelta) -> Mail | None:
    """Return what `fetch` returns first that is not None, or None after `timeout`; asks at least once."""
    until = time.monotonic() + timeout.total_seconds()
    pause = _FIRST_PAUSE_SECONDS
    while (mail := fetch()) is None:
        left = until - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return mail
