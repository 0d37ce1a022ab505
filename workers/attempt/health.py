"""Whether this node can run anything now: its engine starts containers, its disk, its clock and its device are fit.

A node that cannot run anything would take one message after the other only to hand it back, and spend the platform's
budget of each. It takes none while something is wrong, says so, and goes on by itself when that is over. An engine that
answers and starts nothing can only be found out by trying: then one experiment at a time is taken, after longer and
longer pauses.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from jobqueue.envelope import CLOCK_TOLERANCE
from jobqueue.errors import RuntimeFailure
from jobqueue.lifecycle import Reason
from jobqueue.quantities import describe_size, format_duration
from jobqueue.registry.base import Record
from workers.attempt.runtimes.base import ContainerRuntime
from workers.attempt.starts import Starts
from workers.hardware.fitness import Unfit
from workers.rounds import Rounds

log = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(seconds=2)
# A busy engine may be late once; one that an attempt has just failed on is not asked twice.
MISSES: Final = 2
# What an attempt found full may be another disk than the one looked at here, or a quota.
AFTER_FULL: Final = timedelta(minutes=1)


class Trouble(StrEnum):
    """Why a node runs nothing now; also what its workers announce."""

    NO_ENGINE = "NO_ENGINE"
    DISK_FULL = "DISK_FULL"
    CLOCK_SKEW = "CLOCK_SKEW"
    STARTS_FAIL = "STARTS_FAIL"
    GPU_LOST = "GPU_LOST"
    GPU_ECC = "GPU_ECC"
    GPU_XID = "GPU_XID"
    GPU_OCCUPIED = "GPU_OCCUPIED"
    GPU_UNKNOWN = "GPU_UNKNOWN"


class NodeHealth:
    """Looks at the node now and then, on a thread of its own; it may be asked from any.

    Args:
        runtime: what starts containers.
        folder: where attempts and caches lie.
        floor_bytes: so much has to be free there.
        judge_device: returns at once why the worker's device takes no work now; None when it does, or there is none.

    Attributes:
        trouble: what is wrong; None when nothing is.
        detail: the evidence of it, in a sentence; empty when nothing is wrong.
        free_bytes: of the disk under `folder`, as it was looked at last; None while nobody has.
        on_change: called after `trouble` has changed, on the thread that found out.
    """

    def __init__(
        self,
        runtime: ContainerRuntime,
        folder: Path,
        *,
        floor_bytes: int,
        judge_device: Callable[[], Unfit | None] = lambda: None,
    ) -> None:
        self.trouble: Trouble | None = None
        self.detail = ""
        self.free_bytes: int | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._runtime, self._folder, self._floor_bytes = runtime, folder, floor_bytes
        self._judge_device = judge_device
        self._starts = Starts()
        self._misses = 0
        self._full_until_seconds = 0.0
        self._ahead = timedelta(0)
        self._lock = threading.Lock()
        self._rounds = Rounds("health", self.look, every=lambda: LOOK_EVERY)

    @property
    def is_fit(self) -> bool:
        """Whether it can run anything; while it cannot, its workers take no message."""
        return self.trouble is None

    @property
    def is_on_trial(self) -> bool:
        """Whether nothing speaks against it but starts that failed, and one more is to be tried now."""
        return self.trouble is Trouble.STARTS_FAIL and self._starts.is_due

    def start(self) -> None:
        """Look at once, then now and then."""
        self.look(misses=1)
        self._rounds.start()

    def close(self) -> None:
        """Stop looking."""
        self._rounds.close()

    def note(self, reason: Reason) -> None:
        """Learn at once from the end of an attempt that the node was to blame for."""
        if reason is Reason.NODE_DISK_FULL:
            self._full_until_seconds = time.monotonic() + AFTER_FULL.total_seconds()
        if reason in (Reason.NODE_DISK_FULL, Reason.RUNTIME_FAILURE):
            self.look(misses=1)

    def note_start(self) -> None:
        """Learn at once that a container was started."""
        self._starts.worked()
        if self.trouble is Trouble.STARTS_FAIL:
            self.look()

    def note_no_start(self, record: Record, why: str) -> None:
        """Learn that an attempt has ended as RUNTIME_FAILURE, which is noted, before its container was started.

        Args:
            record: of its experiment, as of the grant.
            why: as it is told of the attempt.
        """
        self._starts.failed(record, why, is_answering=self.trouble is not Trouble.NO_ENGINE)
        self.look()

    def note_clock(self, ahead: timedelta) -> None:
        """Learn how far this machine's clock, which the times of messages are judged by, is ahead of the registry's."""
        was_fit, self._ahead = abs(self._ahead) <= CLOCK_TOLERANCE, ahead
        if was_fit != (abs(ahead) <= CLOCK_TOLERANCE):
            self.look()

    def look(self, *, misses: int = MISSES) -> None:
        """Find out what is wrong; an engine counts as gone when it has not answered `misses` times in a row."""
        with self._lock:
            trouble, detail = self._find(misses)
            self.detail = detail
            if trouble is self.trouble:
                return
            self.trouble = trouble
        if trouble is None:
            log.info("node.fit")
        else:
            log.warning("node.unfit", extra={"state": trouble.value, "detail": detail})
        self.on_change()

    def _find(self, misses: int) -> tuple[Trouble | None, str]:
        unfit = self._judge_device()
        if unfit:
            return Trouble[f"GPU_{unfit.ailment}"], unfit.detail
        full = self._find_full()
        if full:
            return Trouble.DISK_FULL, full
        if abs(self._ahead) > CLOCK_TOLERANCE:
            return Trouble.CLOCK_SKEW, _tell_clock(self._ahead)
        try:
            self._runtime.check()
        except RuntimeFailure as error:
            self._misses += 1
            if self.trouble is Trouble.NO_ENGINE or self._misses >= misses:
                return Trouble.NO_ENGINE, error.message
        else:
            self._misses = 0
        starts_fail = self._starts.trouble
        return (Trouble.STARTS_FAIL if starts_fail else None), starts_fail

    def _find_full(self) -> str:
        """Return what says that the disk is full, or nothing."""
        if time.monotonic() < self._full_until_seconds:
            return "an attempt has met a full disk"
        try:
            found = os.statvfs(self._folder)
        except FileNotFoundError:  # the next attempt makes it
            return ""
        except OSError as error:
            return f"{self._folder} cannot be used: {error.strerror}"
        free_bytes = self.free_bytes = found.f_bavail * found.f_frsize
        if found.f_files and not found.f_favail:
            return f"no more files fit on the disk of {self._folder}"
        if free_bytes < self._floor_bytes:
            return f"{describe_size(free_bytes)} free in {self._folder}, wanted {describe_size(self._floor_bytes)}"
        return ""


def _tell_clock(ahead: timedelta) -> str:
    where = "ahead of" if ahead > timedelta(0) else "behind"
    off = format_duration(timedelta(seconds=round(abs(ahead).total_seconds())))
    return f"this machine's clock is {off} {where} the registry's, at most {format_duration(CLOCK_TOLERANCE)} is borne"
