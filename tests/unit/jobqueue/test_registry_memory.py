"""The registry in memory: its clock may be turned, and one process shares one."""

from datetime import UTC, datetime, timedelta

import pytest

from jobqueue.errors import InvalidSetting, NotFound
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Answer, Cancelled, Granted, Held, Submission
from jobqueue.registry.memory import MemoryRegistry
from jobqueue.resources import Resources

TTL = timedelta(minutes=1)


class Clock:
    """Turned by the test."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> MemoryRegistry:
    return MemoryRegistry(clock=clock)


@pytest.fixture
def submission(clock: Clock) -> Submission:
    nothing = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
    return Submission(
        id=make_experiment_id(),
        queue="q",
        project="p",
        resources=nothing,
        submitted_at=clock.now,
        expires_at=clock.now,
        idempotency_key="key",
    )


def acquire(registry: MemoryRegistry, submission: Submission) -> Answer:
    return registry.leases.acquire(submission, worker_id=WorkerId("w"), node_id=NodeId("n"), ttl=TTL, platform_budget=5)


def test_a_lease_is_held_to_its_last_moment(registry: MemoryRegistry, clock: Clock, submission: Submission) -> None:
    assert isinstance(acquire(registry, submission), Granted)
    clock.now += TTL - timedelta(milliseconds=1)
    assert acquire(registry, submission) == Held(remaining=timedelta(milliseconds=1))
    clock.now += timedelta(milliseconds=1)
    assert isinstance(acquire(registry, submission), Granted)


def test_a_clock_that_jumped_back_stretches_no_lease_and_lowers_no_token(
    registry: MemoryRegistry, clock: Clock, submission: Submission
) -> None:
    first = acquire(registry, submission)
    assert isinstance(first, Granted)
    clock.now -= timedelta(hours=1)
    assert acquire(registry, submission) == Held(remaining=TTL)
    clock.now += TTL
    second = acquire(registry, submission)
    assert isinstance(second, Granted)
    assert second.lease.token == first.lease.token + 1


def test_a_final_record_is_kept_for_thirty_days(registry: MemoryRegistry, clock: Clock, submission: Submission) -> None:
    registry.experiments.register(submission)
    answer = acquire(registry, submission)
    assert isinstance(answer, Granted)
    registry.leases.finish(answer.lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    clock.now += timedelta(days=30) - timedelta(seconds=1)
    assert registry.experiments.find()
    clock.now += timedelta(seconds=1)
    assert registry.experiments.find() == []
    with pytest.raises(NotFound):
        registry.experiments.get(submission.id)
    assert registry.experiments.register(submission) == [submission.id]
    assert registry.experiments.get(submission.id).state is State.QUEUED


def test_a_stray_message_is_cancelled_for_as_long_as_it_may_live(
    registry: MemoryRegistry, clock: Clock, submission: Submission
) -> None:
    registry.experiments.withdraw(submission.id)
    clock.now += timedelta(days=30) - timedelta(seconds=1)
    assert isinstance(acquire(registry, submission), Cancelled)
    later = MemoryRegistry(clock=clock)
    later.experiments.withdraw(submission.id)
    clock.now += timedelta(days=30)
    assert isinstance(acquire(later, submission), Granted)


def test_one_process_shares_one_registry_in_memory() -> None:
    assert open_registry("memory://") is open_registry("memory://")


@pytest.mark.parametrize("url", ["", "amqp://host", "redis:host"])
def test_an_unknown_kind_of_registry_is_refused(url: str) -> None:
    with pytest.raises(InvalidSetting, match="redis://"):
        open_registry(url)
