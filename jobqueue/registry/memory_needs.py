"""What queues ask for, in memory."""

from collections.abc import Sequence
from datetime import datetime

from jobqueue.registry.memory_table import Table
from jobqueue.registry.needs import LEARNT_FOR, least
from jobqueue.resources import Resources


class MemoryNeeds:
    """`Needs` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[str, tuple[Resources, datetime]] = table.mapping()

    def note(self, queue: str, resources: Resources) -> None:
        """Note what one message asks for."""
        with self._table.lock:
            now = self._table.clock()
            before, until = self._known.get(queue, (resources, now + LEARNT_FOR))
            if until <= now:
                before, until = resources, now + LEARNT_FOR
            self._known[queue] = least(before, resources), until

    def known(self, queues: Sequence[str] = ()) -> dict[str, Resources]:
        """Return what is known, by queue."""
        with self._table.lock:
            now = self._table.clock()
            known = {queue: found for queue, (found, until) in self._known.items() if until > now}
            return {queue: found for queue, found in known.items() if not queues or queue in queues}
