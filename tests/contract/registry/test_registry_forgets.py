"""A registry that was wiped, or whose server was restarted: it grants nothing that somebody may hold, for one lease."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from services.registries import BROKEN, DRAINED, SUCCESS, acquire, granted, make_submission, make_worker, registered
from services.registry_worlds import MemoryWorld, RedisWorld, open_world

from jobqueue.errors import RegistryUnavailable, Superseded
from jobqueue.ids import NodeId, WorkerId
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import Granted, Held, Holder, Lease, Quarantined, Registry, Submission

TTL = timedelta(minutes=1)
OVER = TTL + timedelta(seconds=2)
World = MemoryWorld | RedisWorld
WRITES: dict[str, Callable[[Registry, Lease], object]] = {
    "advance": lambda registry, lease: registry.leases.advance(lease, State.FINALIZING),
    "release": lambda registry, lease: registry.leases.release(lease, DRAINED, delay=timedelta(0)),
    "finish": lambda registry, lease: registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED),
    "append": lambda registry, lease: registry.live_logs.append(lease, "stdout", b"x", offset=0),
    "renew": lambda registry, lease: registry.leases.renew(lease, ttl=TTL),
}


@pytest.fixture(params=["memory", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with open_world(request.param, tmp_path / "redis", monkeypatch) as world:
        yield world


@pytest.fixture
def registry(world: World) -> Registry:
    return world.caller(0)


def holder(submission: Submission, *, worker: str = "gpu0@a", is_in_doubt: bool = False) -> Holder:
    return Holder(submission=submission, worker_id=WorkerId(worker), node_id=NodeId("a"), is_in_doubt=is_in_doubt)


def wait_out(world: World, registry: Registry) -> None:
    """Let one lease go by while a worker is there."""
    registry.workers.announce(make_worker("watches"), ttl=TTL)
    world.pass_time(OVER)
    registry.workers.announce(make_worker("watches"), ttl=TTL)


def test_what_is_registered_with_a_new_server_is_granted_at_once(registry: Registry) -> None:
    assert granted(registry, registered(registry), ttl=TTL).record.is_whole


def test_what_a_wiped_registry_learns_from_a_message_waits_for_one_lease(world: World, registry: Registry) -> None:
    submission = registered(registry)
    granted(registry, submission, ttl=TTL)
    world.wipe()
    answer = acquire(registry, submission, ttl=TTL)
    assert isinstance(answer, Quarantined)
    assert TTL < answer.remaining <= OVER
    world.pass_time(TTL)
    answer = acquire(registry, submission, ttl=TTL)
    assert isinstance(answer, Quarantined)
    assert timedelta(0) < answer.remaining <= OVER - TTL
    world.pass_time(answer.remaining)
    answer = granted(registry, submission, ttl=TTL)
    assert (answer.lease.attempt, answer.record.is_whole) == (1, False)


def test_what_is_registered_after_the_wipe_does_not_wait(world: World, registry: Registry) -> None:
    world.wipe()
    acquire(registry, make_submission(), ttl=TTL)
    assert isinstance(acquire(registry, registered(registry), ttl=TTL), Granted)


def test_a_live_holder_gets_its_lease_back_and_ends_its_attempt(world: World, registry: Registry) -> None:
    submission = registered(registry)
    registry.leases.release(granted(registry, submission, ttl=TTL).lease, BROKEN, delay=timedelta(0))
    lease = granted(registry, submission, ttl=TTL).lease
    registry.leases.advance(lease, State.RUNNING)
    world.wipe()
    acquire(registry, submission, ttl=TTL)
    assert registry.leases.renew(lease, ttl=TTL, holder=holder(submission)) is None
    record = registry.experiments.get(submission.id)
    assert (record.token, record.attempt, record.worker_id) == (lease.token, 2, "gpu0@a")
    answer = acquire(registry, submission, ttl=TTL)
    assert isinstance(answer, Held)
    registry.live_logs.append(lease, "stdout", b"x", offset=0)
    registry.leases.advance(lease, State.FINALIZING)
    registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    assert registry.experiments.get(submission.id).state is State.SUCCEEDED


def test_an_attempt_that_was_brought_back_counts_when_its_holder_is_lost(world: World, registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=TTL).lease
    world.wipe()
    registry.leases.renew(lease, ttl=TTL, holder=holder(submission))
    wait_out(world, registry)
    again = granted(registry, submission, ttl=TTL)
    assert (again.lease.attempt, again.record.platform_failures) == (2, 1)
    assert again.lease.token > lease.token
    assert again.record.history[-1].reason is Reason.WORKER_LOST
    with pytest.raises(Superseded):
        registry.leases.renew(lease, ttl=TTL, holder=holder(submission))


def test_one_that_gave_its_lease_back_after_the_wipe_is_followed_at_once(world: World, registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=TTL).lease
    world.wipe()
    registry.leases.renew(lease, ttl=TTL, holder=holder(submission))
    registry.leases.release(lease, DRAINED, delay=timedelta(0))
    assert granted(registry, submission, ttl=TTL).lease.attempt == 2


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_before_the_lease_is_back_is_put_off_not_refused(
    world: World, registry: Registry, write: Callable[[Registry, Lease], object]
) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=TTL).lease
    registry.leases.advance(lease, State.RUNNING)
    world.wipe()
    with pytest.raises(RegistryUnavailable, match="forgotten"):
        write(registry, lease)
    registry.leases.renew(lease, ttl=TTL, holder=holder(submission))
    write(registry, lease)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_after_one_lease_a_write_to_what_nobody_brought_back_is_refused(
    world: World, registry: Registry, write: Callable[[Registry, Lease], object]
) -> None:
    lease = granted(registry, registered(registry), ttl=TTL).lease
    world.wipe()
    wait_out(world, registry)
    acquire(registry, make_submission(), ttl=TTL)
    with pytest.raises(Superseded):
        write(registry, lease)


def test_a_holder_in_doubt_waits_until_a_newer_one_would_have_spoken(world: World, registry: Registry) -> None:
    submission = registered(registry)
    old = granted(registry, submission, worker="gpu0@a", ttl=TTL).lease
    world.pass_time(OVER)
    new = granted(registry, submission, worker="gpu0@b", ttl=TTL).lease
    world.wipe()
    with pytest.raises(RegistryUnavailable):
        registry.leases.renew(old, ttl=TTL, holder=holder(submission, is_in_doubt=True))
    registry.leases.renew(new, ttl=TTL, holder=holder(submission, worker="gpu0@b"))
    with pytest.raises(Superseded):
        registry.leases.renew(old, ttl=TTL, holder=holder(submission, is_in_doubt=True))
    assert registry.experiments.get(submission.id).worker_id == "gpu0@b"


def test_a_holder_in_doubt_goes_on_after_one_lease_when_there_is_no_newer_one(world: World, registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=TTL).lease
    world.wipe()
    wait_out(world, registry)
    assert registry.leases.renew(lease, ttl=TTL, holder=holder(submission, is_in_doubt=True)) is None
    assert isinstance(acquire(registry, submission, ttl=TTL), Held)


def test_a_holder_that_comes_back_after_another_was_granted_the_lease_is_superseded(
    world: World, registry: Registry
) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=TTL).lease
    world.wipe()
    acquire(registry, submission, ttl=TTL)
    wait_out(world, registry)
    newer = granted(registry, submission, worker="gpu0@b", ttl=TTL).lease
    assert newer.token > lease.token
    for doubt in (False, True):
        with pytest.raises(Superseded):
            registry.leases.renew(lease, ttl=TTL, holder=holder(submission, is_in_doubt=doubt))


def test_a_live_holder_is_not_replaced_by_a_higher_token_of_another_registry(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=TTL).lease
    other = replace(lease, token=lease.token + 1_000_000)
    with pytest.raises(Superseded):
        registry.leases.renew(other, ttl=TTL, holder=holder(submission, worker="gpu0@b"))
    assert registry.leases.renew(lease, ttl=TTL) is None


def test_what_was_withdrawn_or_ended_after_the_wipe_is_not_brought_back_to_life(
    world: World, registry: Registry
) -> None:
    withdrawn, ended = registered(registry), registered(registry)
    first, second = (granted(registry, submission, ttl=TTL).lease for submission in (withdrawn, ended))
    world.wipe()
    registry.experiments.withdraw(withdrawn.id)
    assert registry.leases.renew(first, ttl=TTL, holder=holder(withdrawn)) is Reason.CANCELLED_BY_USER
    registry.leases.renew(second, ttl=TTL, holder=holder(ended))
    registry.leases.finish(second, SUCCESS, state=State.SUCCEEDED)
    with pytest.raises(Superseded):
        registry.leases.renew(replace(second, token=second.token + 1), ttl=TTL, holder=holder(ended))


def test_without_saying_who_it_is_nobody_gets_a_lease_back(world: World, registry: Registry) -> None:
    lease = granted(registry, registered(registry), ttl=TTL).lease
    world.wipe()
    wait_out(world, registry)
    acquire(registry, make_submission(), ttl=TTL)
    with pytest.raises(Superseded):
        registry.leases.renew(lease, ttl=TTL)
