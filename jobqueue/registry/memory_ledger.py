"""The ledger in memory."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.registry.memory_table import EPOCH, Table
from jobqueue.registry.values import Submission


class MemoryLedger:
    """`Ledger` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._roles: dict[str, tuple[WorkerId, datetime]] = table.mapping()

    def elect(self, role: str, worker_id: WorkerId, *, ttl: timedelta) -> bool:
        """Tell whether this worker has the role for `ttl` from now."""
        with self._table.lock:
            now = self._table.clock()
            holder, until = self._roles.get(role, (worker_id, EPOCH))
            if holder != worker_id and until > now:
                return False
            self._roles[role] = worker_id, now + ttl
            return True

    def lost(self, older_than: timedelta, *, limit: int, queue: str = "") -> list[Submission]:
        """Return what is neither final nor held and was not seen for `older_than`."""
        with self._table.lock:
            before = self._table.clock() - older_than
            unseen = sorted((at, name) for name, at in self._table.seen.items() if at <= before)
            entries = [self._table.entries[name] for _, name in unseen]
            found = [entry.record.submission for entry in entries if self._table.remaining(entry) <= timedelta(0)]
        return [one for one in found if one.message and queue in {"", one.queue}][:limit]

    def republished(self, experiment_ids: Sequence[ExperimentId]) -> None:
        """Note that they were seen now."""
        with self._table.lock:
            for name in self._table.seen.keys() & set(experiment_ids):
                self._table.see(name)
