"""Paused queues in memory."""

from jobqueue.registry.memory_table import Table
from jobqueue.registry.pauses import Pause


class MemoryPauses:
    """`Pauses` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._pauses: dict[str, Pause] = table.mapping()

    def pause(self, pause: Pause) -> None:
        """Keep it until it is taken back."""
        with self._table.lock:
            self._pauses.setdefault(pause.queue, pause)

    def resume(self, queue: str) -> bool:
        """Take that back; tells whether it was wanted."""
        with self._table.lock:
            return self._pauses.pop(queue, None) is not None

    def paused(self) -> dict[str, Pause]:
        """Return all that operators want, by queue."""
        with self._table.lock:
            return dict(sorted(self._pauses.items()))
