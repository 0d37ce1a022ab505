"""Committing the end of an experiment: the result marker, which is the truth; then the report; then the registry."""

import logging
from datetime import UTC, datetime

from jobqueue.errors import ArtifactRefused, RegistryUnavailable, StoreUnavailable
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.marker import Marker
from jobqueue.registry.base import Lease, Leases, Record
from jobqueue.storage.base import Store
from jobqueue.storage.markers import read_marker, write_marker
from workers.attempt.patience import patiently
from workers.attempt.reporting import Reporter

log = logging.getLogger(__name__)


def commit(
    lease: Lease,
    outcome: Outcome,
    *,
    state: State,
    manifest: str,
    manifest_sha256: str = "",
    store: Store,
    leases: Leases,
    reporter: Reporter,
) -> Marker:
    """Make an end final and return its marker: an older attempt's, should that have been first.

    Raises:
        StoreUnavailable: the marker could not be written for minutes; nothing is final.
        ArtifactRefused: there is one that cannot be read.
        Superseded: the registry names a newer holder and there is no marker of ours.
        RegistryUnavailable: the marker is written, the registry does not know yet.
    """
    marker = Marker(
        experiment_id=lease.experiment_id,
        attempt=lease.attempt,
        token=lease.token,
        state=state,
        reason=outcome.reason,
        detail=outcome.detail,
        exit_code=outcome.exit_code,
        last_lines=outcome.last_lines,
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        finished_at=datetime.now(UTC),
    )
    first = patiently(StoreUnavailable, lambda: write_marker(store, marker))
    follow_marker(lease, first, leases=leases, reporter=reporter)
    return first


def follow_marker(lease: Lease, marker: Marker, *, leases: Leases, reporter: Reporter) -> None:
    """Report what the marker says, then tell the registry; its writer may have been lost before it did."""
    tell_end(lease, outcome_of(marker), state=marker.state, manifest=marker.manifest, leases=leases, reporter=reporter)


def tell_end(
    lease: Lease, outcome: Outcome, *, state: State, manifest: str = "", leases: Leases, reporter: Reporter
) -> None:
    """Report an end, then tell the registry."""
    reporter.ended(
        outcome.reason,
        state=state,
        sentence=outcome.sentence,
        exit_code=outcome.exit_code,
        last_lines=outcome.last_lines,
        manifest=manifest,
    )
    patiently(RegistryUnavailable, lambda: leases.finish(lease, outcome, state=state))
    log.info(
        "experiment.final",
        extra={"experiment": lease.experiment_id, "state": state, "reason": outcome.reason.name},
    )


def find_end(record: Record, store: Store) -> Marker | None:
    """Return the marker of what the registry knows to be final; None when there is none, or nobody can say.

    What was cancelled while nobody held it gets its marker here, before its message goes: a registry that was wiped
    would have any copy of that message run.

    Raises:
        StoreUnavailable: it could not be written.
    """
    experiment_id = record.submission.id
    try:
        if record.state is State.CANCELLED:
            return write_marker(store, _marker_of_cancel(record))
        return read_marker(store, experiment_id) if record.token else None
    except (ArtifactRefused, StoreUnavailable) as error:
        log.warning("marker.not_read", extra={"experiment": experiment_id, "error": error.message})
        if record.state is State.CANCELLED and isinstance(error, StoreUnavailable):
            raise
        return None


def _marker_of_cancel(record: Record) -> Marker:
    """Return the marker that names the newest attempt, so that its log is found."""
    return Marker(
        experiment_id=record.submission.id,
        attempt=record.attempt,
        token=record.token,
        state=State.CANCELLED,
        reason=record.reason or Reason.CANCELLED_BY_USER,
        detail=record.detail,
        finished_at=record.finished_at or datetime.now(UTC),
    )


def outcome_of(marker: Marker) -> Outcome:
    """Return how the experiment ended, as its marker says."""
    return Outcome(reason=marker.reason, detail=marker.detail, exit_code=marker.exit_code, last_lines=marker.last_lines)
