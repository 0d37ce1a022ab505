"""What the end of an experiment means for who waits for it, from the registry's record or the store's marker."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from jobqueue.artifacts import attempt_prefix
from jobqueue.errors import ExperimentCancelled, ExperimentFailed, JobqueueError
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.marker import Marker
from jobqueue.registry.base import Record, Submission
from jobqueue.storage.base import Store
from jobqueue.storage.markers import read_marker, write_marker

log = logging.getLogger(__name__)


def find_prefix(store: Store, record: Record) -> str:
    """Return the prefix of the attempt that counts: once it is over the one that committed, before that the newest."""
    marker = read_marker(store, record.submission.id) if record.state.is_final else None
    attempt, token = (marker.attempt, marker.token) if marker else (record.attempt, record.token)
    return attempt_prefix(record.submission.id, attempt, token)


def make_error(record: Record) -> JobqueueError | None:
    """Return what `result()` raises for a final record; None when the experiment succeeded."""
    if record.state is State.SUCCEEDED:
        return None
    submission, reason = record.submission, record.reason
    name = f"{submission.id} ({submission.name})" if submission.name else submission.id
    sentence = Outcome(reason=reason, detail=record.detail).sentence if reason else "no reason is recorded"
    if record.state is State.CANCELLED:
        return ExperimentCancelled(f"{name} was cancelled: {sentence}")
    return ExperimentFailed(
        f"{name} failed: {sentence}",
        hint=reason.verdict.hint if reason else "",
        reason=reason.name if reason else "",
        exit_code=record.exit_code,
        last_lines=record.last_lines,
    )


def apply_marker(record: Record, marker: Marker) -> Record:
    """Return the record of an experiment that has ended as its marker says."""
    return replace(
        record,
        state=marker.state,
        attempt=marker.attempt,
        token=marker.token,
        reason=marker.reason,
        detail=marker.detail,
        exit_code=marker.exit_code,
        last_lines=marker.last_lines,
        finished_at=marker.finished_at,
    )


def without_message(submission: Submission) -> Submission:
    """Return a submission without its sealed envelope, which a handle has no use for."""
    return replace(submission, message=b"")


def mark_cancelled(experiment_id: ExperimentId, *, open_store: Callable[[], Store], look: Callable[[], Record]) -> None:
    """Write the result marker of an experiment that was cancelled while nobody held it; one that is there stays.

    The registry knows of the end already, so a store that cannot be opened or does not answer, or a marker there that
    cannot be read, changes nothing for the user.
    """
    try:
        record, store = look(), open_store()
        marker = Marker(
            experiment_id=experiment_id,
            attempt=record.attempt,
            token=record.token,
            state=State.CANCELLED,
            reason=record.reason or Reason.CANCELLED_BY_USER,
            detail=record.detail,
            finished_at=record.finished_at or datetime.now(UTC),
        )
        write_marker(store, marker)
    except JobqueueError as error:
        log.warning("experiment.marker_not_written experiment=%s error=%s", experiment_id, error)
