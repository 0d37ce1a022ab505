"""The guard: a process of its own that freezes containers whose lease nobody has renewed in time.

A worker that was killed or stopped cannot freeze anything, and a worker elsewhere will be granted the next attempt when
the lease is over. The guard knows nothing of brokers, registries and Celery: it reads the node's lease files and asks
the engine. It removes nothing and lets nothing go on that it did not freeze itself a moment before. Run as

    python -m workers.node.guard <state folder> <runtime>

It ends by itself when there is nothing left to guard.
"""

import logging
import logging.handlers
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.errors import RuntimeFailure
from workers.attempt.lease import clock_seconds
from workers.attempt.lease_files import read_lease, read_leases
from workers.attempt.node_folder import NodeFolder, open_node_folder
from workers.attempt.runtimes import RuntimeName, open_runtime
from workers.attempt.runtimes.base import Container, ContainerRuntime
from workers.attempt.runtimes.hardening import make_name
from workers.file_locks import is_at, lock
from workers.node.plain_lines import PlainLines

log = logging.getLogger(__name__)

LOOK_AT_FILES: Final = timedelta(milliseconds=250)
LOOK_AT_ENGINE: Final = timedelta(seconds=2)
# A container's lease file is written before it is started; without one it is a stranger, or its file was lost.
UNKNOWN: Final = timedelta(seconds=3)
LINGER: Final = timedelta(milliseconds=200)
SILENT: Final = timedelta(minutes=10)
_LOG_BYTES: Final = 2**20


class Guard:
    """What looks after one node's containers.

    Args:
        node: whose.
        runtime: where they are.
    """

    def __init__(self, node: NodeFolder, runtime: ContainerRuntime) -> None:
        self._node, self._runtime = node, runtime
        self._frozen: set[str] = set()
        self._known: dict[str, Container] = {}
        self._unknown_since: dict[str, float] = {}
        self._engine_at = 0.0
        self._engine_since = self._needed_at = clock_seconds()
        self._is_silent = self._is_leased = False

    def look(self) -> None:
        """Freeze what is overdue now; the engine is asked when a deadline has just passed, and now and then."""
        # Before the files are read: a deadline that is moved after this instant was not passed at it.
        now = clock_seconds()
        leases = read_leases(self._node.leases)
        overdue = {name for name, kept in leases.items() if kept.is_overdue(now)}
        self._frozen &= overdue | set(self._unknown_since)
        is_time = now - self._engine_at >= LOOK_AT_ENGINE.total_seconds()
        # A container may be starting whose worker has just died: its lease file was there before it.
        self._is_leased = len(overdue) < len(leases)
        is_last = not self._known and not self._node.has_workers()
        if is_time or is_last or overdue - self._frozen:
            self._engine_at = now
            self._look_at_engine(now)
            self._frozen |= overdue

    def is_needed(self) -> bool:
        """Tell, after a look, whether there is a worker, a container or a lease here, or was a moment ago."""
        now = clock_seconds()
        if self._node.has_workers() or self._is_leased or (self._known and not self._is_silent):
            self._needed_at = now
        patience = SILENT if self._is_silent else LINGER
        return now - self._needed_at < patience.total_seconds()

    def _look_at_engine(self, now: float) -> None:
        try:
            found = {make_name(container.labels): container for container in self._runtime.find(self._node.node_id)}
        except RuntimeFailure as failure:
            if not self._is_silent:
                log.warning("engine.unreachable", extra={"error": failure.message})
            self._is_silent = True
            return
        self._is_silent = False
        # What was found before keeps its connection.
        self._known = {name: self._known.get(name, container) for name, container in found.items()}
        for name, container in self._known.items():
            if self._may_not_run(name, now):
                self._freeze(name, container)

    def _may_not_run(self, name: str, now: float) -> bool:
        kept = read_lease(self._node.leases, name)
        if kept is not None:
            self._unknown_since.pop(name, None)
            return kept.is_overdue(now)
        return now - self._unknown_since.setdefault(name, now) >= UNKNOWN.total_seconds()

    def _freeze(self, name: str, container: Container) -> None:
        """Freeze it, and let it go on if its lease was renewed meanwhile: its holder thaws it after a renewal only."""
        try:
            container.pause()
            kept = read_lease(self._node.leases, name)
            if kept is not None and not kept.is_overdue(clock_seconds()):
                container.resume()
                return
        except RuntimeFailure as failure:
            log.warning("container.not_frozen", extra={"container": name, "error": failure.message})
            return
        if name not in self._frozen:
            self._frozen.add(name)
            log.warning("container.frozen", extra={"container": name})


def main() -> None:
    """Guard one node until there is nothing left to guard; where another guard is there already, end at once."""
    state_dir, runtime_name = Path(sys.argv[1]), sys.argv[2]
    node = open_node_folder(state_dir)
    held = lock(node.guard)
    if held is None:
        return
    # What ends a terminal's session must not end the guard.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _log_to(node.root / "guard.log")
    runtime = open_runtime(_runtime(runtime_name), state_dir=state_dir)
    guard = Guard(node, runtime)
    log.warning("guard.started", extra={"node": node.node_id, "runtime": runtime.name})
    try:
        guard.look()
        while is_at(node.guard, held) and guard.is_needed():
            time.sleep(LOOK_AT_FILES.total_seconds())
            guard.look()
    except Exception:  # nobody reads what it writes elsewhere; a worker starts another one
        log.exception("guard.failed", extra={"node": node.node_id})
        raise
    log.warning("guard.ended", extra={"node": node.node_id})
    runtime.close()


def _runtime(name: str) -> RuntimeName:
    names: dict[str, RuntimeName] = {"docker": "docker", "process": "process"}
    return names[name]


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)
    handler.setFormatter(PlainLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


if __name__ == "__main__":
    main()
