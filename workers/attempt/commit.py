"""Committing the end of an experiment: the result marker, which is the truth; then the report; then the registry."""

import logging
from datetime import UTC, datetime
from typing import Final

import stamina

from jobqueue.artifacts import result_key
from jobqueue.errors import RegistryUnavailable, StoreUnavailable
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Outcome, State
from jobqueue.marker import Marker, marker_from_json, marker_to_json
from jobqueue.registry.base import Lease, Leases
from jobqueue.storage.base import Store
from workers.attempt.reporting import Reporter

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 300.0


def read_marker(store: Store, experiment_id: ExperimentId) -> Marker | None:
    """Return the result marker, or None when the experiment has not ended.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    key = result_key(experiment_id)
    return marker_from_json(b"".join(store.get(key))) if store.size(key) is not None else None


def commit(
    lease: Lease, outcome: Outcome, *, state: State, manifest: str, store: Store, leases: Leases, reporter: Reporter
) -> State:
    """Make an end final and return the final state: the marker's, should another attempt have been first.

    Raises:
        StoreUnavailable: the marker could not be written for minutes; nothing is final.
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
        finished_at=datetime.now(UTC),
    )
    for attempt in stamina.retry_context(on=StoreUnavailable, attempts=None, timeout=PATIENCE_SECONDS):
        with attempt:
            if not store.put_if_absent(result_key(lease.experiment_id), marker_to_json(marker)):
                marker = read_marker(store, lease.experiment_id) or marker
    if marker.token == lease.token:
        reporter.ended(
            outcome.reason,
            state=state,
            sentence=outcome.sentence,
            exit_code=outcome.exit_code,
            last_lines=outcome.last_lines,
            manifest=manifest,
        )
    follow_marker(lease, marker, leases=leases)
    return marker.state


def follow_marker(lease: Lease, marker: Marker, *, leases: Leases) -> None:
    """Tell the registry what the marker says."""
    outcome = Outcome(
        reason=marker.reason, detail=marker.detail, exit_code=marker.exit_code, last_lines=marker.last_lines
    )
    for attempt in stamina.retry_context(on=RegistryUnavailable, attempts=None, timeout=PATIENCE_SECONDS):
        with attempt:
            leases.finish(lease, outcome, state=marker.state)
    log.info(
        "experiment.final",
        extra={"experiment": lease.experiment_id, "state": marker.state, "reason": marker.reason.name},
    )
