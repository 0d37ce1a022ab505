"""Every registry gives a lease to one holder at a time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from services.registries import LONG, SHORT, acquire, granted, make_submission, next_grant, registered

from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import (
    Held,
    Registry,
)


def test_the_first_grant_is_attempt_one_of_a_preparing_experiment(registry: Registry) -> None:
    submission = registered(registry)
    answer = granted(registry, submission, worker="gpu0@a")
    assert answer.lease.attempt == 1
    assert answer.lease.experiment_id == submission.id
    assert answer.record.state is State.PREPARING
    assert (answer.record.worker_id, answer.record.node_id) == ("gpu0@a", "a")
    assert (answer.record.attempt, answer.record.token) == (1, answer.lease.token)
    assert answer.record.submission == replace(submission, message=b"")


def test_tokens_come_from_the_registrys_clock(registry: Registry) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    token = granted(registry, registered(registry)).lease.token
    assert before < datetime.fromtimestamp(token / 1000, UTC) < datetime.now(UTC) + timedelta(seconds=5)


def test_an_experiment_the_registry_forgot_is_recorded_from_the_message(registry: Registry) -> None:
    submission = make_submission()
    assert granted(registry, submission).lease.attempt == 1
    assert registry.experiments.get(submission.id).submission == submission


def test_a_live_lease_is_held_against_everybody_its_owner_too(registry: Registry) -> None:
    submission = registered(registry)
    granted(registry, submission, worker="gpu0@a")
    for worker in ("gpu1@a", "gpu0@a"):
        answer = acquire(registry, submission, worker=worker)
        assert isinstance(answer, Held)
        assert LONG - timedelta(seconds=30) < answer.remaining <= LONG


def test_a_lease_that_ran_out_counts_as_a_lost_worker_and_the_next_attempt_has_a_greater_token(
    registry: Registry,
) -> None:
    submission = registered(registry)
    first = granted(registry, submission, worker="gpu0@a", ttl=SHORT)
    second = next_grant(registry, submission, worker="gpu1@b")
    assert second.lease.attempt == 2
    assert second.lease.token > first.lease.token
    assert second.record.platform_failures == 1
    assert second.record.reason is Reason.WORKER_LOST
    (past,) = second.record.history
    assert (past.attempt, past.token, past.reason) == (1, first.lease.token, Reason.WORKER_LOST)
    assert past.detail == "gpu0@a"


def test_a_lease_that_ran_out_is_still_its_holders_until_somebody_asks(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=timedelta(milliseconds=1)).lease
    assert registry.leases.renew(lease, ttl=LONG) is None
    assert isinstance(acquire(registry, submission), Held)


def test_renewing_extends_the_lease(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=timedelta(seconds=30)).lease
    registry.leases.renew(lease, ttl=LONG)
    answer = acquire(registry, submission)
    assert isinstance(answer, Held)
    assert answer.remaining > timedelta(minutes=4)
