"""How the starts of containers went lately: where one after the other fails, it may be the node that starts nothing.

An engine may answer and start nothing. Such a node is always idle, and would take one message after the other.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from threading import Lock
from typing import Final

from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason
from jobqueue.quantities import format_duration
from jobqueue.registry.base import Record

# So many experiments in a row: one, or two of a kind, may be of the kind that no engine starts.
IN_A_ROW: Final = 3
FIRST_PAUSE: Final = timedelta(seconds=5)
LAST_PAUSE: Final = timedelta(minutes=5)
_TOLD_LETTERS: Final = 300


class Starts:
    """What one worker's starts say of its node. Any thread.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: set[ExperimentId] = set()
        self._pause = timedelta(0)
        self._due_at_seconds = 0.0
        self._why = ""
        self._lock = Lock()

    @property
    def trouble(self) -> str:
        """What speaks against the node, in a sentence; empty while nothing does."""
        with self._lock:
            if not self._pause:
                return ""
            told = (
                f"{len(self._failed)} experiments in a row, another one is tried after {format_duration(self._pause)}"
            )
            return f"no container starts ({told}): {self._why}"

    @property
    def is_due(self) -> bool:
        """Whether the next one is to be tried."""
        return self._clock() >= self._due_at_seconds

    def worked(self) -> None:
        """Note that a container was started."""
        with self._lock:
            self._failed.clear()
            self._pause, self._due_at_seconds = timedelta(0), 0.0

    def failed(self, record: Record, why: str, *, is_answering: bool) -> None:
        """Note that an attempt has ended before its container was started.

        What has failed so before, and is not among those that fail here now, says nothing: it fails on other nodes too,
        or did here while others started. Neither does what was on its way when a pause began.

        Args:
            record: of its experiment, as of the grant.
            why: as it is told of the attempt.
            is_answering: the engine does; while it is away that alone is the trouble.
        """
        experiment_id = record.submission.id
        has_failed_before = any(past.reason is Reason.RUNTIME_FAILURE for past in record.history)
        with self._lock:
            if has_failed_before and experiment_id not in self._failed:
                return
            self._failed.add(experiment_id)
            self._why = why[:_TOLD_LETTERS]
            if is_answering and self.is_due and len(self._failed) >= IN_A_ROW:
                self._pause = min(2 * self._pause, LAST_PAUSE) or FIRST_PAUSE
                self._due_at_seconds = self._clock() + self._pause.total_seconds()
