"""Every registry keeps a tombstone: of a cancelled and of a withdrawn experiment."""

import pytest
from services.registries import (
    AT_ONCE,
    DRAINED,
    LONG,
    SHORT,
    SUCCESS,
    acquire,
    found_ids,
    granted,
    make_submission,
    registered,
)
from services.waiting import wait_until

from jobqueue.errors import NotFound, Superseded
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import (
    Cancelled,
    Final,
    Registry,
)


def test_cancelling_a_waiting_experiment_ends_it_at_once(registry: Registry) -> None:
    submission = registered(registry)
    assert registry.experiments.cancel(submission.id) is State.CANCELLED
    record = registry.experiments.get(submission.id)
    assert (record.state, record.reason, record.is_cancelled) == (State.CANCELLED, Reason.CANCELLED_BY_USER, True)
    assert isinstance(acquire(registry, submission), Final)
    assert registry.experiments.cancel(submission.id) is State.CANCELLED


def test_cancelling_a_running_experiment_is_seen_at_the_next_renewal(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.leases.advance(lease, State.RUNNING)
    assert registry.experiments.cancel(submission.id) is State.RUNNING
    assert registry.experiments.get(submission.id).is_cancelled
    assert registry.leases.renew(lease, ttl=LONG) is Reason.CANCELLED_BY_USER
    registry.leases.finish(lease, Outcome(reason=Reason.CANCELLED_BY_USER), state=State.CANCELLED)
    assert registry.experiments.get(submission.id).state is State.CANCELLED


def test_what_a_deleted_queue_cancels_says_so(registry: Registry) -> None:
    waiting, running = registered(registry), registered(registry)
    lease = granted(registry, running).lease
    for submission in (waiting, running):
        registry.experiments.cancel(submission.id, reason=Reason.QUEUE_DELETED)
    assert registry.experiments.get(waiting.id).reason is Reason.QUEUE_DELETED
    registry.experiments.cancel(running.id)
    assert registry.experiments.get(running.id).cancel_reason is Reason.QUEUE_DELETED
    assert registry.leases.renew(lease, ttl=LONG) is Reason.QUEUE_DELETED
    registry.leases.release(lease, DRAINED, delay=AT_ONCE)
    answer = acquire(registry, running)
    assert isinstance(answer, Cancelled)
    assert answer.record.cancel_reason is Reason.QUEUE_DELETED


def test_the_open_ones_of_a_queue_are_found(registry: Registry) -> None:
    queue = f"{make_experiment_id()}_cpu"
    ids = sorted((registered(registry, queue=queue, name=f"n{number}").id for number in range(4)), reverse=True)
    registered(registry, queue=f"{queue}2")
    assert found_ids(registry, queue=queue) == ids
    assert found_ids(registry, queue=queue, name="n1", limit=1) == ids[2:3]
    registry.experiments.cancel(ids[0])
    registry.experiments.withdraw(ids[1])
    submission = registry.experiments.get(ids[2]).submission
    registry.leases.finish(granted(registry, submission).lease, SUCCESS, state=State.SUCCEEDED)
    assert found_ids(registry, queue=queue) == ids[3:]
    registry.leases.release(
        granted(registry, registry.experiments.get(ids[3]).submission).lease, DRAINED, delay=AT_ONCE
    )
    assert found_ids(registry, queue=queue) == ids[3:]


def test_an_unknown_experiment_that_a_worker_brings_is_open_in_its_queue(registry: Registry) -> None:
    submission = make_submission(queue=f"{make_experiment_id()}_cpu")
    granted(registry, submission)
    assert found_ids(registry, queue=submission.queue) == [submission.id]


def test_cancelling_waits_for_no_holder_that_went_silent(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=SHORT).lease
    wait_until(lambda: registry.experiments.cancel(submission.id) is State.CANCELLED, what="cancelled")
    with pytest.raises(Superseded):
        registry.leases.renew(lease, ttl=LONG)


def test_a_tombstone_gives_a_lease_that_only_commits(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.experiments.cancel(submission.id)
    registry.leases.release(lease, DRAINED, delay=AT_ONCE)
    answer = acquire(registry, submission)
    assert isinstance(answer, Cancelled)
    assert (answer.lease.attempt, answer.record.is_cancelled) == (1, True)
    assert answer.lease.token > lease.token
    registry.leases.finish(answer.lease, Outcome(reason=Reason.CANCELLED_BY_USER), state=State.CANCELLED)
    assert registry.experiments.get(submission.id).state is State.CANCELLED


def test_cancelling_never_changes_a_final_state(registry: Registry) -> None:
    submission = registered(registry)
    registry.leases.finish(granted(registry, submission).lease, SUCCESS, state=State.SUCCEEDED)
    before = registry.experiments.get(submission.id)
    assert registry.experiments.cancel(submission.id) is State.SUCCEEDED
    registry.experiments.withdraw(submission.id)
    assert registry.experiments.get(submission.id) == before


def test_a_withdrawn_submission_is_forgotten_and_its_stray_message_cancelled(registry: Registry) -> None:
    name = make_experiment_id()
    submission = registered(registry, name=name, idempotency_key=name, spec_digest="d1")
    registry.experiments.withdraw(submission.id)
    with pytest.raises(NotFound):
        registry.experiments.get(submission.id)
    assert found_ids(registry, name=name) == []
    again = registered(registry, idempotency_key=name, spec_digest="d2")
    assert again.id != submission.id
    answer = acquire(registry, submission)
    assert isinstance(answer, Cancelled)
    assert answer.lease.attempt == 0
    registry.leases.finish(answer.lease, Outcome(reason=Reason.CANCELLED_BY_USER), state=State.CANCELLED)
    assert isinstance(acquire(registry, submission), Final)


def test_withdrawing_what_a_worker_has_taken_cancels_it(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.experiments.withdraw(submission.id)
    assert registry.leases.renew(lease, ttl=LONG) is Reason.CANCELLED_BY_USER


def test_a_withdrawn_experiment_may_be_submitted_again(registry: Registry) -> None:
    submission = registered(registry)
    registry.experiments.withdraw(submission.id)
    registry.experiments.withdraw(submission.id)
    registry.experiments.register(submission)
    assert granted(registry, submission).lease.attempt == 1
