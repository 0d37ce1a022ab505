"""Leases in memory: each step under one lock."""

from dataclasses import replace
from datetime import timedelta

from jobqueue.ids import NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.base import (
    Another,
    Answer,
    Cancelled,
    Exhausted,
    Final,
    Granted,
    Held,
    Holder,
    Lease,
    Quarantined,
    Submission,
)
from jobqueue.registry.memory_table import EPOCH, Entry, Table, is_lost_grant, without_message
from jobqueue.registry.rules import counter_of, refuse_move, require_final, sources_of


class MemoryLeases:
    """`Leases` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def acquire(
        self,
        submission: Submission,
        *,
        worker_id: WorkerId,
        node_id: NodeId,
        ttl: timedelta,
        platform_budget: int,
    ) -> Answer:
        """Ask for the lease."""
        with self._table.lock:
            entry = self._table.entry(submission.id) or self._rebuild(submission)
            known = entry.record.submission.digest
            if known and submission.digest not in {"", known}:
                return Another()
            if not known:
                named = replace(entry.record.submission, digest=submission.digest)
                entry = self._table.store(replace(entry, record=replace(entry.record, submission=named)))
            if entry.record.state.is_final:
                return Final(record=without_message(entry.record))
            self._table.see(submission.id)
            if (remaining := self._table.remaining(entry)) > timedelta(0):
                return Held(remaining=remaining)
            remaining = self._table.quarantine(ttl)
            if self._table.is_forgotten(entry):
                return Quarantined(remaining=remaining)
            if entry.record.worker_id is not None:
                lost = Outcome(reason=Reason.WORKER_LOST, detail=entry.record.worker_id)
                entry = self._table.give_back(entry, lost, delay=timedelta(0))
            return self._grant(entry, worker_id=worker_id, node_id=node_id, ttl=ttl, platform_budget=platform_budget)

    def renew(self, lease: Lease, *, ttl: timedelta, holder: Holder | None = None) -> Reason | None:
        """Hold on for `ttl` from now; returns the reason of the tombstone that lies."""
        with self._table.lock:
            self._table.quarantine(ttl)
            entry = self._reassert(lease, holder) if holder else None
            entry = entry or self._table.held(lease)
            self._table.see(lease.experiment_id)
            self._table.store(replace(entry, until=self._table.clock() + ttl, span=ttl))
            return entry.record.cancel_reason

    def advance(self, lease: Lease, state: State, *, phase: Phase | None = None, progress: str | None = None) -> None:
        """Record where the attempt is."""
        sources = sources_of(state)
        with self._table.lock:
            entry = self._table.held(lease)
            record = entry.record
            is_reasserted = entry.is_reasserted and record.state is state
            if record.state is not state and record.state not in sources and not entry.is_reasserted:
                refuse_move(lease, known=record.state, asked=state)
            starts = state is State.RUNNING and record.started_at is None
            record = replace(
                record,
                state=state,
                phase=phase or (record.phase if record.state is state else None),
                progress=record.progress if progress is None else progress,
                started_at=self._table.clock() if starts else record.started_at,
            )
            self._table.store(replace(entry, record=record, is_reasserted=is_reasserted))

    def release(self, lease: Lease, outcome: Outcome, *, delay: timedelta) -> None:
        """End the attempt without a final state."""
        counter_of(outcome)
        with self._table.lock:
            known = self._table.entry(lease.experiment_id)
            if known and _is_given_back(known, lease):
                return  # the same call again
            self._table.give_back(self._table.held(lease), outcome, delay=delay)

    def finish(self, lease: Lease, outcome: Outcome, *, state: State) -> None:
        """Record the final state."""
        require_final(state)
        with self._table.lock:
            known = self._table.entry(lease.experiment_id)
            if known and _is_same_end(known, lease, outcome=outcome, state=state):
                return  # the same call again
            self._table.make_final(self._table.held(lease), outcome, state=state)

    def _reassert(self, lease: Lease, holder: Holder) -> Entry | None:
        """Give a lease back that was forgotten; None when it was not, or cannot be given back."""
        entry = self._table.entry(lease.experiment_id)
        if not is_lost_grant(entry, lease):
            return None
        if self._table.is_forgotten(entry):
            if holder.is_in_doubt:
                return None  # a newer holder may not have said so yet
        elif entry and entry.record.worker_id is not None and self._table.remaining(entry) > timedelta(0):
            return None
        entry = entry or self._rebuild(holder.submission)
        record = replace(
            entry.record,
            state=State.RUNNING,
            token=lease.token,
            attempt=max(entry.record.attempt, lease.attempt),
            worker_id=holder.worker_id,
            node_id=holder.node_id,
        )
        return replace(entry, record=record, is_attempt=True, epoch=self._table.epoch, is_reasserted=True)

    def _rebuild(self, submission: Submission) -> Entry:
        entry = self._table.add(submission)
        if self._table.clock() >= self._table.withdrawn.get(submission.id, EPOCH):
            return entry
        return self._table.store(replace(entry, record=replace(entry.record, cancel_reason=Reason.CANCELLED_BY_USER)))

    def _grant(
        self, entry: Entry, *, worker_id: WorkerId, node_id: NodeId, ttl: timedelta, platform_budget: int
    ) -> Answer:
        record, now = entry.record, self._table.clock()
        is_exhausted = record.platform_failures >= platform_budget
        is_attempt = not record.is_cancelled and not is_exhausted
        record = replace(
            record,
            token=max(record.token + 1, (now - EPOCH) // timedelta(milliseconds=1)),
            attempt=record.attempt + is_attempt,
            state=State.PREPARING if is_attempt else record.state,
            is_whole=record.is_whole and entry.epoch == self._table.epoch,
            worker_id=worker_id,
            node_id=node_id,
        )
        entry = replace(entry, record=record, until=now + ttl, span=ttl, is_attempt=is_attempt, is_reasserted=False)
        self._table.store(entry)
        lease = Lease(experiment_id=record.submission.id, token=record.token, attempt=record.attempt)
        answer = Cancelled if record.is_cancelled else Exhausted if is_exhausted else Granted
        return answer(lease=lease, record=without_message(record))


def _is_given_back(entry: Entry, lease: Lease) -> bool:
    record = entry.record
    return record.token == lease.token and record.worker_id is None and not record.state.is_final


def _is_same_end(entry: Entry, lease: Lease, *, outcome: Outcome, state: State) -> bool:
    record = entry.record
    return record.token == lease.token and record.state is state and record.reason is outcome.reason
