"""The registry in memory: complete, for one process; for tests, and for trying things out."""

import time
from datetime import UTC, datetime, timedelta

from jobqueue.registry.base import Experiments, Leases, LiveLogs
from jobqueue.registry.calls import Calls
from jobqueue.registry.directory import Directory
from jobqueue.registry.ledger import Ledger
from jobqueue.registry.memory_calls import MemoryCalls
from jobqueue.registry.memory_directory import MemoryDirectory
from jobqueue.registry.memory_experiments import MemoryExperiments
from jobqueue.registry.memory_leases import MemoryLeases
from jobqueue.registry.memory_ledger import MemoryLedger
from jobqueue.registry.memory_logs import MemoryLiveLogs
from jobqueue.registry.memory_needs import MemoryNeeds
from jobqueue.registry.memory_pauses import MemoryPauses
from jobqueue.registry.memory_table import Clock, Table
from jobqueue.registry.memory_workers import MemoryWorkers
from jobqueue.registry.needs import Needs
from jobqueue.registry.pauses import Pauses
from jobqueue.registry.presence import Workers


def _make_clock() -> Clock:
    """Return a clock that begins with this machine's and then never steps."""
    began_at, began_seconds = datetime.now(UTC), time.monotonic()
    return lambda: began_at + timedelta(seconds=time.monotonic() - began_seconds)


class MemoryRegistry:
    """`Registry` in memory, safe in threads.

    Args:
        clock: the registry's clock, aware; a test may turn its hands.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock = clock or _make_clock()
        self._table = table = Table(clock=clock)
        self.leases: Leases = MemoryLeases(table)
        self.experiments: Experiments = MemoryExperiments(table)
        self.live_logs: LiveLogs = MemoryLiveLogs(table)
        self.workers: Workers = MemoryWorkers(table)
        self.ledger: Ledger = MemoryLedger(table)
        self.needs: Needs = MemoryNeeds(table)
        self.directory: Directory = MemoryDirectory(table)
        self.pauses: Pauses = MemoryPauses(table)
        self.calls: Calls = MemoryCalls()

    def ping(self) -> datetime:
        """Return its time: it is always there."""
        return self._clock()

    def forget(self) -> None:
        """Lose everything, as a server does that is wiped; its holders are left, and it knows nothing of them."""
        self._table.forget()

    def close(self) -> None:
        """Keep everything: another caller in this process may share it."""
