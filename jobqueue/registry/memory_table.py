"""What the registry in memory knows of experiments, and the steps its ports share; `prelude.lua` is its counterpart."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import Lease, PastAttempt, Record, Submission
from jobqueue.registry.rules import HISTORY_LENGTH, RETENTION, counter_of, refuse_forgotten, refuse_write

Clock = Callable[[], datetime]

EPOCH: Final = datetime.fromtimestamp(0, UTC)
_CLOCK_TOLERANCE: Final = timedelta(milliseconds=500)
_QUARANTINE_MARGIN: Final = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A record, and what only the registry needs to know.

    Attributes:
        record: as of now; its submission holds the message until it is final.
        until: ends the lease while there is a holder, a back-off otherwise.
        span: how long that was meant to be, so that a clock which jumped back cannot stretch it.
        is_attempt: the lease is for running it, not only for committing an end.
        epoch: the one of the table in which the record is whole; None: it may not be.
        is_reasserted: a holder has brought its lease back; where its attempt really is was not said yet.
    """

    record: Record
    until: datetime = EPOCH
    span: timedelta = timedelta(0)
    is_attempt: bool = False
    epoch: int | None = None
    is_reasserted: bool = False


@dataclass(kw_only=True)
class Table:
    """Every experiment, under one lock; the callers hold it.

    Attributes:
        lock: makes a step atomic.
        clock: the registry's; aware.
        seen: when each open experiment was seen last, or will have been once its back-off is over.
        epoch: how often everything was forgotten; wiped_at: when, the last time.
        is_settled: no holder can be there any more that was forgotten.
        withdrawn: until when a stray message of a withdrawn experiment is answered with a cancel.
        others: what else is lost with everything.
    """

    clock: Clock
    lock: threading.RLock = field(default_factory=threading.RLock)
    entries: dict[ExperimentId, Entry] = field(default_factory=dict)
    epoch: int = 0
    wiped_at: datetime = EPOCH
    is_settled: bool = True
    seen: dict[ExperimentId, datetime] = field(default_factory=dict)
    withdrawn: dict[ExperimentId, datetime] = field(default_factory=dict)
    idempotency: dict[tuple[str, str], ExperimentId] = field(default_factory=dict)
    others: list[dict[Any, Any]] = field(default_factory=list)

    def entry(self, experiment_id: ExperimentId) -> Entry | None:
        """Return what is known of an experiment, unless it has expired."""
        entry = self.entries.get(experiment_id)
        finished_at = entry.record.finished_at if entry else None
        if finished_at and self.clock() >= finished_at + RETENTION:
            del self.entries[experiment_id]
            return None
        return entry

    def forget(self) -> None:
        """Lose everything but the time when that happened."""
        with self.lock:
            known: list[dict[Any, Any]] = [self.entries, self.seen, self.withdrawn, self.idempotency, *self.others]
            for each in known:
                each.clear()
            self.epoch, self.wiped_at, self.is_settled = self.epoch + 1, self.clock(), False

    def mapping(self) -> dict[Any, Any]:
        """Return a new mapping that is lost with everything."""
        self.others.append(made := dict[Any, Any]())
        return made

    def quarantine(self, ttl: timedelta) -> timedelta:
        """Return how long it goes on for what is not whole; not above 0 when it is over."""
        remaining = self.wiped_at + ttl + _QUARANTINE_MARGIN - self.clock()
        self.is_settled = self.is_settled or remaining <= timedelta(0)
        return remaining

    def is_forgotten(self, entry: Entry | None) -> bool:
        """Tell whether somebody may hold the lease of an experiment without it being known here."""
        return not self.is_settled and (entry is None or entry.epoch != self.epoch)

    def add(self, submission: Submission, *, epoch: int | None = None) -> Entry:
        """Record a submission as QUEUED; without an epoch when it was not registered here, as far as is known."""
        entry = Entry(record=Record(submission=submission, is_whole=epoch is not None), epoch=epoch)
        self.entries[submission.id] = entry
        self.see(submission.id)
        return entry

    def see(self, experiment_id: ExperimentId, *, after: timedelta = timedelta(0)) -> None:
        """Note that somebody has, or `after` some time will have, an open experiment before their eyes."""
        self.seen[experiment_id] = self.clock() + after

    def store(self, entry: Entry) -> Entry:
        """Replace what is known of an experiment."""
        self.entries[entry.record.submission.id] = entry
        return entry

    def remaining(self, entry: Entry) -> timedelta:
        """Return how long the lease or the back-off goes on; not above 0 when it is over."""
        remaining = entry.until - self.clock()
        if remaining > entry.span + _CLOCK_TOLERANCE:
            # The clock jumped back: a live holder renews within its span, a dead one is over after it.
            self.store(replace(entry, until=self.clock() + entry.span))
            return entry.span
        return remaining

    def held(self, lease: Lease) -> Entry:
        """Return the entry that a holder may write.

        Raises:
            Superseded: a newer token was granted, the lease was given back, or it is final.
            RegistryUnavailable: that cannot be said yet.
        """
        entry = self.entry(lease.experiment_id)
        if entry and may_write(entry, lease):
            return entry
        if is_lost_grant(entry, lease) and self.is_forgotten(entry):
            refuse_forgotten(lease)
        record = entry.record if entry else None
        return refuse_write(
            lease, known_token=record.token if record else None, known_state=record.state if record else None
        )

    def give_back(self, entry: Entry, outcome: Outcome, *, delay: timedelta) -> Entry:
        """End an attempt without a final state."""
        record = replace(entry.record, state=State.QUEUED, phase=None, worker_id=None, node_id=None)
        if entry.is_attempt:
            record = _counted(record, outcome)
        self.see(record.submission.id, after=delay)
        until = self.clock() + delay
        return self.store(replace(entry, record=record, until=until, span=delay, is_attempt=False))

    def make_final(self, entry: Entry, outcome: Outcome, *, state: State) -> None:
        """Record the end."""
        record = replace(
            entry.record,
            submission=replace(entry.record.submission, message=b""),
            state=state,
            phase=None,
            worker_id=None,
            node_id=None,
            reason=outcome.reason,
            detail=outcome.detail,
            exit_code=outcome.exit_code,
            last_lines=outcome.last_lines,
            finished_at=self.clock(),
        )
        self.seen.pop(record.submission.id, None)
        self.store(Entry(record=record, epoch=entry.epoch))

    def cancel(self, entry: Entry, *, reason: Reason = Reason.CANCELLED_BY_USER) -> State:
        """Put a tombstone, unless one lies; final at once where nobody holds the lease. Returns the state."""
        if entry.record.state.is_final:
            return entry.record.state
        reason = entry.record.cancel_reason or reason
        entry = self.store(replace(entry, record=replace(entry.record, cancel_reason=reason)))
        if entry.record.worker_id is not None and entry.until > self.clock():
            return entry.record.state
        self.make_final(entry, Outcome(reason=reason), state=State.CANCELLED)
        return State.CANCELLED


def may_write(entry: Entry, lease: Lease) -> bool:
    """Tell whether this is the holder."""
    record = entry.record
    return record.worker_id is not None and not record.state.is_final and record.token == lease.token


def is_lost_grant(entry: Entry | None, lease: Lease) -> bool:
    """Tell whether this lease was granted, for all that is known, and then forgotten."""
    return entry is None or (not entry.record.state.is_final and entry.record.token < lease.token)


def without_message(record: Record) -> Record:
    """Return the record as every answer but `get` gives it."""
    return replace(record, submission=replace(record.submission, message=b""))


def _counted(record: Record, outcome: Outcome) -> Record:
    past = PastAttempt(
        attempt=record.attempt,
        token=record.token,
        reason=outcome.reason,
        detail=outcome.detail,
    )
    counter = counter_of(outcome)
    return replace(
        record,
        reason=outcome.reason,
        detail=outcome.detail,
        exit_code=outcome.exit_code,
        last_lines=outcome.last_lines,
        history=(*record.history, past)[-HISTORY_LENGTH:],
        user_failures=record.user_failures + (counter == "user_failures"),
        platform_failures=record.platform_failures + (counter == "platform_failures"),
    )
