"""Keeping a guard on the node: whichever worker sees that there is none starts one, within a second or two."""

import logging
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from workers.attempt.node_folder import NodeFolder
from workers.file_locks import is_locked
from workers.rounds import Rounds

log = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(seconds=1)
LONGEST_PAUSE: Final = timedelta(seconds=30)
END_WITHIN: Final = timedelta(seconds=2)
_END_TICK_SECONDS: Final = 0.05
# It opens the engine, and nothing else: no broker, no registry, no store.
_VARIABLES: Final = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
_ENGINE_VARIABLES: Final = "DOCKER_"


class GuardStarter:
    """Sees to it that a guard runs, as long as this worker does; the guard stays when the worker is gone.

    Args:
        node: whose.
        state_dir: of this worker.
        runtime: what the worker starts containers with.
    """

    def __init__(self, node: NodeFolder, *, state_dir: Path, runtime: str) -> None:
        self._node = node
        self._words = [sys.executable, "-m", "workers.node.guard", str(state_dir), runtime]
        self._started: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._rounds = Rounds("guard", self._look, every=self._pause)

    def start(self) -> None:
        """Start a guard if there is none, and look again and again."""
        self._rounds.take()
        self._rounds.start()

    def close(self) -> None:
        """Stop looking; a guard that runs goes on until nothing is left to guard."""
        self._rounds.close()

    def await_end(self) -> None:
        """Wait a moment for the end of a guard that has nothing left to guard: a worker that ends leaves nothing."""
        patience = time.monotonic() + END_WITHIN.total_seconds()
        while not self._node.has_workers() and self._is_there() and time.monotonic() < patience:
            time.sleep(_END_TICK_SECONDS)

    def _is_there(self) -> bool:
        is_mine = self._started is not None and self._started.poll() is None
        return is_mine or is_locked(self._node.guard)

    def _pause(self) -> timedelta:
        """How long until the next look: longer and longer while guards fail at their start."""
        return min(LOOK_EVERY * (1 << min(self._failures, 10)), LONGEST_PAUSE)

    def _look(self) -> None:
        if self._started is not None and self._started.poll() is not None:
            self._failures = self._failures + 1 if self._started.returncode > 0 else 0
            self._started = None
        if self._started is None and not is_locked(self._node.guard):
            self._spawn()

    def _spawn(self) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _VARIABLES or name.startswith(_ENGINE_VARIABLES)
        }
        try:
            self._started = subprocess.Popen(  # noqa: S603 - our own program
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
        except OSError as error:
            self._failures += 1
            log.warning("guard.not_started", extra={"error": error.strerror})
        else:
            log.info("guard.started", extra={"pid": self._started.pid})
