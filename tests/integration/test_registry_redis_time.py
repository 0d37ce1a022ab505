"""Redis' clock may step, and its server may be replaced: no lease ends early by that, and none lasts for long."""

from datetime import timedelta
from pathlib import Path

import pytest
from services.redis import open_redis
from services.registries import DRAINED, SUCCESS, acquire, granted, make_submission, make_worker, registered
from services.registry_worlds import RedisWorld, open_world

from jobqueue.ids import NodeId, WorkerId
from jobqueue.lifecycle import State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Granted, Held, Holder, Quarantined, Registry

TTL = timedelta(minutes=1)
STEPS = [timedelta(hours=1), timedelta(minutes=-30), timedelta(seconds=20)]
LITTLE = timedelta(seconds=1)


def announce(registry: Registry) -> None:
    registry.workers.announce(make_worker("watches"), ttl=TTL)


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("asks", ["the holder's process", "an old one", "a new one"])
def test_a_step_of_the_clock_ends_no_lease(world: RedisWorld, step: timedelta, asks: str) -> None:
    holder, old = world.caller(0), world.caller(1)
    announce(old)
    submission = registered(holder)
    lease = granted(holder, submission, ttl=TTL).lease
    world.pass_time(TTL / 4)
    world.step_clock(step)
    caller = {"the holder's process": holder, "an old one": old, "a new one": world.caller(2)}[asks]
    for _ in range(3):
        answer = acquire(caller, submission, ttl=TTL)
        assert isinstance(answer, Held)
        assert answer.remaining <= TTL
        world.pass_time(TTL / 4)
        holder.leases.renew(lease, ttl=TTL)


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("asks", [1, 2])
def test_after_a_step_a_lost_holder_is_replaced_within_one_lease(world: RedisWorld, step: timedelta, asks: int) -> None:
    announce(world.caller(1))
    submission = registered(world.caller(0))
    granted(world.caller(0), submission, ttl=TTL)
    world.step_clock(step)
    assert isinstance(acquire(world.caller(asks), submission, ttl=TTL), Held)
    world.pass_time(TTL + LITTLE)
    assert isinstance(acquire(world.caller(asks), submission, ttl=TTL), Granted)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_step_back_and_forth_between_two_calls_ends_no_lease(world: RedisWorld, *, is_new: bool) -> None:
    holder, other = world.caller(0), world.caller(1)
    submission = registered(holder)
    announce(other)
    world.pass_time(timedelta(hours=1))
    announce(other)
    if not is_new:
        announce(holder)
    world.step_clock(timedelta(minutes=-30))
    lease = granted(holder, submission, ttl=TTL).lease
    world.step_clock(timedelta(minutes=30))
    assert isinstance(acquire(other, submission, ttl=TTL), Held)
    holder.leases.renew(lease, ttl=TTL)
    assert isinstance(acquire(other, submission, ttl=TTL), Held)


def test_who_has_watched_all_the_time_does_not_wait_longer_than_the_lease(world: RedisWorld) -> None:
    submission = registered(world.caller(0))
    announce(world.caller(1))
    granted(world.caller(0), submission, ttl=TTL)
    world.pass_time(TTL + LITTLE)
    assert isinstance(acquire(world.caller(1), submission, ttl=TTL), Granted)


def test_a_long_silence_of_everybody_is_no_step(world: RedisWorld) -> None:
    submission = registered(world.caller(0))
    announce(world.caller(1))
    granted(world.caller(0), submission, ttl=TTL)
    world.pass_time(timedelta(hours=10))
    assert isinstance(acquire(world.caller(1), submission, ttl=TTL), Granted)


def test_one_who_comes_after_a_silence_watches_for_one_lease_what_was_held_before(world: RedisWorld) -> None:
    held, idle = registered(world.caller(0)), registered(world.caller(0))
    granted(world.caller(0), held, ttl=TTL)
    world.pass_time(timedelta(hours=10))
    newcomer = world.caller(1)
    assert isinstance(acquire(newcomer, idle, ttl=TTL), Granted)
    answer = acquire(newcomer, held, ttl=TTL)
    assert isinstance(answer, Held)
    world.pass_time(answer.remaining + LITTLE)
    assert isinstance(acquire(newcomer, held, ttl=TTL), Granted)


def test_one_who_stays_after_a_silence_watches_for_those_who_come_later(world: RedisWorld) -> None:
    submission = registered(world.caller(0))
    granted(world.caller(0), submission, ttl=TTL)
    world.pass_time(timedelta(hours=10))
    for _ in range(4):
        announce(world.caller(1))
        world.pass_time(TTL / 4)
    assert isinstance(acquire(world.caller(2), submission, ttl=TTL), Held)
    world.pass_time(LITTLE)
    announce(world.caller(1))
    assert isinstance(acquire(world.caller(2), submission, ttl=TTL), Granted)


def test_newcomers_one_after_another_stop_nobodys_watch(world: RedisWorld) -> None:
    watches = world.caller(0)
    submission = registered(watches)
    announce(watches)
    granted(world.caller(1), submission, ttl=TTL)
    for name in range(2, 9):
        world.pass_time(TTL / 6)
        announce(world.caller(name))
    assert isinstance(acquire(watches, submission, ttl=TTL), Granted)


def test_a_step_does_not_shorten_the_wait_after_a_wipe(world: RedisWorld) -> None:
    submission = registered(world.caller(0))
    lease = granted(world.caller(0), submission, ttl=TTL).lease
    world.wipe()
    announce(world.caller(1))
    world.step_clock(timedelta(hours=1))
    for name in (2, 1, 0):
        assert isinstance(acquire(world.caller(name), submission, ttl=TTL), Quarantined)
    holder = Holder(submission=submission, worker_id=WorkerId("w"), node_id=NodeId("n"))
    assert world.caller(0).leases.renew(lease, ttl=TTL, holder=holder) is None


def test_a_step_back_does_not_lengthen_the_wait_after_a_wipe(world: RedisWorld) -> None:
    submission = make_submission()
    world.wipe()
    announce(world.caller(0))
    world.step_clock(timedelta(minutes=-30))
    assert isinstance(acquire(world.caller(0), submission, ttl=TTL), Quarantined)
    world.pass_time(TTL + 2 * LITTLE)
    assert isinstance(acquire(world.caller(0), submission, ttl=TTL), Granted)


def test_the_wait_after_a_wipe_is_over_for_good_once_somebody_watched_it(world: RedisWorld) -> None:
    world.wipe()
    announce(world.caller(0))
    world.pass_time(TTL + 2 * LITTLE)
    announce(world.caller(0))
    world.step_clock(timedelta(hours=1))
    for name in (0, 1):
        assert isinstance(acquire(world.caller(name), make_submission(), ttl=TTL), Granted)


@pytest.mark.parametrize("asks", [0, 1])
def test_tokens_grow_over_a_wipe_on_a_server_whose_clock_is_behind(world: RedisWorld, asks: int) -> None:
    submission, caller = registered(world.caller(0)), world.caller(asks)
    lease = granted(world.caller(0), submission, ttl=TTL).lease
    announce(world.caller(1))
    world.step_clock(timedelta(hours=-1))
    world.wipe()
    announce(caller)
    world.pass_time(TTL + 2 * LITTLE)
    first = granted(caller, submission, ttl=TTL).lease
    assert first.token > lease.token
    announce(caller)
    world.wipe()
    announce(caller)
    world.pass_time(TTL + 2 * LITTLE)
    assert granted(caller, submission, ttl=TTL).lease.token > first.token


def test_a_server_that_came_back_grants_nothing_old_for_one_lease_but_what_is_new_at_once(tmp_path: Path) -> None:
    with open_redis(tmp_path / "data") as server:
        registry = open_registry(server.url)
        waiting, given_back, held, ended = (registered(registry) for _ in range(4))
        registry.leases.release(granted(registry, given_back).lease, DRAINED, delay=timedelta(0))
        registry.leases.finish(granted(registry, ended).lease, SUCCESS, state=State.SUCCEEDED)
        lease = granted(registry, held).lease
        server.process.kill()
        server.process.start()
        for old in (waiting, given_back):
            assert isinstance(acquire(registry, old, ttl=TTL), Quarantined)
        assert isinstance(acquire(registry, held, ttl=TTL), Held)
        assert registry.experiments.get(ended.id).state is State.SUCCEEDED
        assert registry.leases.renew(lease, ttl=TTL) is None
        assert granted(registry, registered(registry), ttl=TTL).record.is_whole
        registry.close()


@pytest.mark.parametrize("keeps", [True, False], ids=["append-only file", "no file"])
def test_a_server_of_this_machine_that_keeps_all_it_confirmed_grants_at_once(tmp_path: Path, *, keeps: bool) -> None:
    path = tmp_path / "r.sock"
    options = ("--unixsocket", str(path), *(() if keeps else ("--appendonly", "no", "--save", "3600 1")))
    with open_redis(tmp_path / "data", options=options) as server:
        registry = open_registry(f"redis+socket://{path}")
        waiting, held = registered(registry), registered(registry)
        lease = granted(registry, held).lease
        server.process.stop()
        server.process.start()
        answer = acquire(registry, waiting, ttl=TTL)
        assert isinstance(answer, Granted if keeps else Quarantined)
        assert isinstance(acquire(registry, held, ttl=TTL), Held)
        assert registry.leases.renew(lease, ttl=TTL) is None
        registry.close()


def test_what_is_switched_off_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_world("redis", tmp_path / "redis", monkeypatch, off=("quarantine", "clock", "token")) as world:
        registry = world.caller(0)
        submission = registered(registry)
        old = granted(registry, submission, ttl=TTL).lease
        world.step_clock(timedelta(hours=1))
        granted(registry, submission, ttl=TTL)
        registry.leases.advance(old, State.RUNNING)
        world.wipe()
        granted(registry, submission, ttl=TTL)


def test_nobody_turns_the_clock_of_a_registry_that_is_not_unprotected(tmp_path: Path) -> None:
    with open_redis(tmp_path / "data") as server:
        world = RedisWorld(server)
        world.step_clock(timedelta(hours=1))
        registry = world.caller(0)
        before = registry.ping()
        granted(registry, submission := registered(registry))
        token = registry.experiments.get(submission.id).token
        assert token / 1000 - before.timestamp() < timedelta(minutes=1).total_seconds()
        world.close()


def test_what_is_granted_by_a_server_that_came_back_may_have_ended_before(world: RedisWorld) -> None:
    registry = world.caller(0)
    submission = registered(registry)
    world.note()
    registry.leases.finish(granted(registry, submission, ttl=TTL).lease, SUCCESS, state=State.SUCCEEDED)
    world.restart(forgets=True)
    announce(registry)
    world.pass_time(TTL + 2 * LITTLE)
    answer = granted(registry, submission, ttl=TTL)
    assert (answer.lease.attempt, answer.record.is_whole) == (1, False)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_what_is_lost_is_found_though_the_clock_has_stepped(world: RedisWorld, step: timedelta) -> None:
    registry = world.caller(0)
    waits, held, put_off = (registered(registry) for _ in range(3))
    granted(registry, held, ttl=TTL)
    lease = granted(registry, put_off, ttl=TTL).lease
    registry.leases.release(lease, DRAINED, delay=2 * TTL)
    world.step_clock(step)

    def lost() -> set[str]:
        return {found.id for found in registry.ledger.lost(TTL / 2, limit=10)}

    lost()
    world.pass_time(TTL / 2 + LITTLE)
    assert waits.id in lost()
    world.pass_time(TTL + LITTLE)
    assert {waits.id, held.id} <= lost()
    world.pass_time(TTL + LITTLE)
    assert lost() == {waits.id, held.id, put_off.id}
