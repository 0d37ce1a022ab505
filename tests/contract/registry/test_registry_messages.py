"""Every registry knows an experiment by one message, and grants the lease to no other one that names its id."""

from dataclasses import replace

import pytest
from services.registries import AT_ONCE, DRAINED, SUCCESS, acquire, granted, make_submission

from jobqueue.lifecycle import State
from jobqueue.registry.base import Another, Final, Granted, Held, Lease, Registry, Submission


def of(submission: Submission, message: bytes) -> Submission:
    """Return what a worker says that has received this message."""
    return replace(submission, message=b"", digest=replace(submission, message=message, digest="").digest)


@pytest.mark.security_case("same id, another message")
@pytest.mark.parametrize("end", [None, "held", "given back", "final"])
def test_another_message_under_a_known_id_gets_no_lease(registry: Registry, end: str | None) -> None:
    """A trusted sender signs a message of its own under the id of somebody else's experiment, or of its own older one.

    Refused: while the first is queued, held, given back or final; nothing of its record changes.
    Evidence: the registry's answer, and the record before and after.
    Red before: what was queued or given back was granted to whichever message asked first.
    """
    submission = make_submission(message=b"first")
    registry.experiments.register(submission)
    if end:
        lease = granted(registry, of(submission, b"first")).lease
        _end(registry, lease, end)
    before = registry.experiments.get(submission.id)
    assert isinstance(acquire(registry, of(submission, b"another")), Another)
    assert registry.experiments.get(submission.id) == before


def test_the_same_message_is_answered_as_ever(registry: Registry) -> None:
    submission = make_submission(message=b"first")
    registry.experiments.register(submission)
    lease = granted(registry, of(submission, b"first")).lease
    assert isinstance(acquire(registry, of(submission, b"first")), Held)
    registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    assert isinstance(acquire(registry, of(submission, b"first")), Final)


def test_what_the_registry_did_not_know_is_known_by_the_message_that_was_accepted_first(registry: Registry) -> None:
    submission = make_submission()
    assert isinstance(acquire(registry, of(submission, b"first")), Granted)
    assert isinstance(acquire(registry, of(submission, b"another")), Another)
    assert isinstance(acquire(registry, of(submission, b"first")), Held)


def _end(registry: Registry, lease: Lease, end: str) -> None:
    if end == "given back":
        registry.leases.release(lease, DRAINED, delay=AT_ONCE)
    if end == "final":
        registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
