"""Experiments in memory."""

from collections.abc import Sequence
from dataclasses import replace

from jobqueue.errors import IdempotencyMismatch
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import Record, Submission
from jobqueue.registry.memory_table import EPOCH, Entry, Table, without_message
from jobqueue.registry.rules import RETENTION, not_found, refuse_key


class MemoryExperiments:
    """`Experiments` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def register(self, *submissions: Submission) -> list[ExperimentId]:
        """Record them as QUEUED, all or none, and return their ids, or the older ones of their idempotency keys."""
        with self._table.lock:
            before = dict(self._table.entries), dict(self._table.idempotency), dict(self._table.seen)
            try:
                return [self._register(submission) for submission in submissions]
            except IdempotencyMismatch:
                self._table.entries, self._table.idempotency, self._table.seen = before
                raise

    def _register(self, submission: Submission) -> ExperimentId:
        key = (submission.project, submission.idempotency_key)
        older_id = self._table.idempotency.get(key, submission.id)
        older = self._table.entry(older_id) or self._table.entry(submission.id)
        if older:
            return _same(older, submission)
        self._table.add(submission, epoch=self._table.epoch)
        self._table.withdrawn.pop(submission.id, None)
        if submission.idempotency_key:
            self._table.idempotency[key] = submission.id
        return submission.id

    def withdraw(self, experiment_id: ExperimentId) -> None:
        """Forget a submission that could not be published."""
        with self._table.lock:
            entry = self._table.entry(experiment_id)
            if entry and entry.record.state.is_final:
                return
            self._table.withdrawn[experiment_id] = self._table.clock() + RETENTION
            if entry is None:
                return
            submission = entry.record.submission
            if self._table.idempotency.get((submission.project, submission.idempotency_key)) == experiment_id:
                del self._table.idempotency[submission.project, submission.idempotency_key]
            if entry.record.token:
                self._table.cancel(entry)
            else:
                del self._table.entries[experiment_id]
                del self._table.seen[experiment_id]

    def get(self, experiment_id: ExperimentId) -> Record:
        """Return the record."""
        with self._table.lock:
            entry = self._table.entry(experiment_id)
        if entry is None:
            raise not_found(experiment_id)
        return _told(entry)

    def states(self, experiment_ids: Sequence[ExperimentId]) -> dict[ExperimentId, State]:
        """Return where each known one is."""
        with self._table.lock:
            found = {name: self._table.entry(name) for name in experiment_ids}
        return {name: entry.record.state for name, entry in found.items() if entry}

    def find(
        self, *, prefix: str = "", name: str = "", project: str = "", queue: str = "", limit: int = 100
    ) -> list[Record]:
        """Return matching records, newest first."""
        with self._table.lock:
            entries = [self._table.entry(known) for known in sorted(self._table.entries, reverse=True)]
        records = [_told(entry) for entry in entries if entry]
        matching = [
            record
            for record in records
            if record.submission.id.startswith(prefix)
            and name in {"", record.submission.name}
            and project in {"", record.submission.project}
            and (not queue or (queue == record.submission.queue and not record.state.is_final))
        ]
        return [without_message(record) for record in matching[:limit]]

    def cancel(self, experiment_id: ExperimentId, *, reason: Reason = Reason.CANCELLED_BY_USER) -> State:
        """Put a tombstone; without a live lease the experiment is CANCELLED at once."""
        with self._table.lock:
            entry = self._table.entry(experiment_id)
            if entry is None:
                raise not_found(experiment_id)
            return self._table.cancel(entry, reason=reason)


def _told(entry: Entry) -> Record:
    is_given_back = entry.record.worker_id is None and entry.until != EPOCH
    return replace(entry.record, next_try_at=entry.until) if is_given_back else entry.record


def _same(older: Entry, submission: Submission) -> ExperimentId:
    known = older.record.submission
    if known.spec_digest not in {"", submission.spec_digest}:
        refuse_key(known.id)
    return known.id
