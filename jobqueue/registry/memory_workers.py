"""Workers in memory."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from jobqueue.ids import WorkerId
from jobqueue.registry.memory_table import Table
from jobqueue.registry.presence import Drain, WorkerRecord


@dataclass(frozen=True, kw_only=True)
class _Presence:
    worker: WorkerRecord
    until: datetime


class MemoryWorkers:
    """`Workers` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._presences: dict[WorkerId, _Presence] = table.mapping()
        self._drains: dict[str, Drain] = table.mapping()

    def announce(self, worker: WorkerRecord, *, ttl: timedelta) -> Drain | None:
        """Say that it is there, and return what an operator wants of it or its node."""
        with self._table.lock:
            self._presences[worker.worker_id] = _Presence(worker=worker, until=self._table.clock() + ttl)
            drains = [self._drains[each] for each in (worker.worker_id, worker.node_id) if each in self._drains]
        return max(drains, key=lambda drain: drain.is_hurried, default=None)

    def leave(self, worker_id: WorkerId) -> None:
        """Say that it has gone."""
        with self._table.lock:
            self._presences.pop(worker_id, None)

    def present(self) -> list[WorkerRecord]:
        """Return who is there, by id."""
        with self._table.lock:
            now = self._table.clock()
            return [found.worker for _, found in sorted(self._presences.items()) if found.until > now]

    def drain(self, drain: Drain) -> None:
        """Keep what an operator wants."""
        with self._table.lock:
            self._drains[drain.target] = drain

    def resume(self, target: str) -> bool:
        """Take that back; tells whether it was wanted."""
        with self._table.lock:
            return self._drains.pop(target, None) is not None

    def drains(self) -> list[Drain]:
        """Return all that operators want, by target."""
        with self._table.lock:
            return [drain for _, drain in sorted(self._drains.items())]
