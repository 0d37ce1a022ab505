"""Keeping a lease while an attempt runs: one thread that renews, and nothing else.

The deadline is local and monotonic: the moment of *sending* the last renewal that was answered, plus the lease, less a
margin, on a clock that counts suspended time too. Past it the lease is in doubt, whatever the thread is busy with: the
supervisor then freezes the container until an answer says that the lease is still held, or lost. It stands in the
attempt's lease file as well: where this whole process is stopped or dead, the node's guard freezes the container.
"""

import logging
import time
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from typing import Final

from jobqueue.errors import RegistryUnavailable, Superseded
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Holder, Leases
from workers.attempt.lease_files import LeaseFile
from workers.rounds import Rounds

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 4
LONGEST_INTERVAL: Final = timedelta(seconds=5)
MARGIN: Final = 1 / 6


class Standing(Enum):
    """What the holder knows of its lease."""

    HELD = "held"
    IN_DOUBT = "in_doubt"
    CANCELLED = "cancelled"
    LOST = "lost"


def clock_seconds() -> float:
    """Return the clock that local deadlines are on: monotonic, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def local_deadline(sent_at_seconds: float, ttl: timedelta) -> float:
    """Return until when a lease is beyond doubt whose renewal was sent then, on `clock_seconds()`."""
    return sent_at_seconds + ttl.total_seconds() * (1 - MARGIN)


class LeaseKeeper:
    """Renews one lease until it is closed or lost.

    Args:
        leases: the registry's port.
        file: what the node keeps of the lease, its deadline too; an attribute too.
        ttl: how long it lasts from each renewal; an attribute too.
        granted_at_seconds: `clock_seconds()` before `acquire`, or the renewal that took it over, was sent.
        holder: who holds it; a registry that has forgotten the lease gives it back to nobody else.
        is_taken_over: whether it was an earlier worker's, so that its container may be frozen.
        cancel_reason: what the registry has said of a cancel, if it was asked before.

    Attributes:
        lease: as it was granted.
        lapses: how often the deadline had passed before a renewal was answered: the guard may have frozen the
            container, and only its holder thaws it.
    """

    def __init__(
        self,
        leases: Leases,
        file: LeaseFile,
        *,
        ttl: timedelta,
        granted_at_seconds: float,
        holder: Holder,
        is_taken_over: bool = False,
        cancel_reason: Reason | None = None,
    ) -> None:
        self.lease = file.kept.lease
        self.lapses = int(is_taken_over)
        self.file = file
        self._leases = leases
        self._holder = holder
        self.ttl = ttl
        self._cancel_reason = cancel_reason
        self._is_lost = False
        self._deadline_seconds = local_deadline(granted_at_seconds, ttl)
        interval = min(ttl / RENEWALS_PER_LEASE, LONGEST_INTERVAL)  # so that a cancel is seen soon
        self._rounds = Rounds(f"lease-{self.lease.experiment_id}", self._renew, every=lambda: interval)

    @property
    def standing(self) -> Standing:
        """What is known now."""
        if self._is_lost:
            return Standing.LOST
        if clock_seconds() >= self._deadline_seconds:
            return Standing.IN_DOUBT
        return Standing.CANCELLED if self._cancel_reason else Standing.HELD

    @property
    def cancel_reason(self) -> Reason | None:
        """Why it is to be stopped, once it is cancelled."""
        return self._cancel_reason

    def start(self) -> None:
        """Begin to renew."""
        self._rounds.start()

    def close(self) -> None:
        """Stop renewing; the lease is left as it is."""
        self._rounds.close()

    def _renew(self) -> None:
        sent_at_seconds = clock_seconds()
        holder = replace(self._holder, is_in_doubt=sent_at_seconds >= self._deadline_seconds)
        try:
            self._cancel_reason = self._leases.renew(self.lease, ttl=self.ttl, holder=holder)
        except Superseded:
            self._is_lost = True
            self._rounds.close()
            log.warning("lease.lost", extra={"experiment": self.lease.experiment_id, "token": self.lease.token})
        except RegistryUnavailable as error:
            log.warning("lease.renewal_failed", extra={"experiment": self.lease.experiment_id, "error": error.message})
        else:
            self._hold_until(local_deadline(sent_at_seconds, self.ttl))

    def _hold_until(self, deadline_seconds: float) -> None:
        """Move the deadline: on disk first, so that what the guard froze before that is known to be frozen."""
        try:
            self.file.update(deadline_seconds=deadline_seconds)
        except OSError as error:
            log.warning("lease_file.not_written", extra={"error": error.strerror})
        self.lapses += clock_seconds() >= self._deadline_seconds
        self._deadline_seconds = deadline_seconds
