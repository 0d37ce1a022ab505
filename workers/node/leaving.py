"""Ending the workers of an ephemeral node by themselves: when it has been idle for long, or one has run enough.

Idleness is the node's: its workers see each other's work in the folder of its lease files, which changes with every
lease that is taken, renewed or ended. So no slot leaves while another one is busy, and they leave together.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from jobqueue.errors import InvalidSetting
from jobqueue.quantities import format_duration, parse_duration
from workers.attempt.lease_files import read_leases
from workers.bootstrap import Node
from workers.rounds import Rounds

log = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Leave:
    """When a worker ends by itself.

    Attributes:
        idle: once nothing of its node has run for so long; None: never for that.
        experiments: once it has run so many itself; None: never for that.
    """

    idle: timedelta | None = None
    experiments: int | None = None


def parse_leave(idle: str | timedelta | None, experiments: str | int | None) -> Leave:
    """Return what an operator has asked for, as text or as values; nothing, and nothing is what comes of it.

    Raises:
        InvalidSetting: it is no duration or number, or none above 0.
    """
    try:
        duration = parse_duration(idle) if idle else None
    except ValueError as error:
        raise InvalidSetting(f"--exit-when-idle: {error}", hint="write it as in 15m") from None
    if duration is not None and duration <= timedelta(0):
        raise InvalidSetting("--exit-when-idle: not above 0", hint="write it as in 15m")
    if experiments and (not str(experiments).isdecimal() or int(experiments) < 1):
        raise InvalidSetting(f"--max-experiments: not a number above 0: {experiments!r}", hint="write it as in 1")
    return Leave(idle=duration, experiments=int(experiments) if experiments else None)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Leaver:
    """Tells this worker to end, once, on a thread of its own.

    Args:
        node: this worker's.
        leave: when it is to end.
        end: tells it so; as an operator would, by default.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        node: Node,
        leave: Leave,
        *,
        end: Callable[[], None] = _terminate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._leave, self._end, self._clock = node, leave, end, clock
        self._stamp: Any = None
        self._idle_since_seconds = clock()
        self._rounds = Rounds("leaver", self.look, every=lambda: LOOK_EVERY)

    def start(self) -> None:
        """Look now and then."""
        self._rounds.start()

    def close(self) -> None:
        """Look no more."""
        self._rounds.close()

    def look(self) -> bool:
        """Tell this worker to end if it is time, and tell whether it was."""
        why = self._find_reason()
        if why:
            log.info("worker.leaves", extra={"worker": self._node.site.worker_id, "why": why})
            self._rounds.close()
            self._end()
        return bool(why)

    def _find_reason(self) -> str:
        is_busy = bool(self._node.promised())
        most, idle = self._leave.experiments, self._leave.idle
        if most is not None and self._node.served >= most and not is_busy:
            return f"experiments run: {self._node.served}"
        if idle is None:
            return ""
        if is_busy or self._has_stirred():
            self._idle_since_seconds = self._clock()
        if self._clock() - self._idle_since_seconds < idle.total_seconds():
            return ""
        return f"idle for {format_duration(idle)}"

    def _has_stirred(self) -> bool:
        """Tell whether a worker of this node has, or had since the last look, a lease."""
        folder = self._node.folder.leases
        before, self._stamp = self._stamp, folder.stat().st_mtime_ns
        return before != self._stamp or bool(read_leases(folder))
