"""Redis' clock may step: no role and no worker's record outlives its holder by that, and none that is alive ends."""

from datetime import timedelta

import pytest
from services.registries import make_worker
from services.registry_worlds import RedisWorld

from jobqueue.ids import WorkerId
from jobqueue.registry.base import Registry

TTL = timedelta(minutes=1)
STEPS = [timedelta(hours=1), timedelta(minutes=-10), timedelta(seconds=20)]
LITTLE = timedelta(seconds=1)


def present(registry: Registry) -> set[str]:
    return {worker.worker_id for worker in registry.workers.present()}


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_role_goes_to_another_one_soon_though_the_clock_has_stepped(world: RedisWorld, step: timedelta) -> None:
    ledger = world.caller(0).ledger
    dead, alive = WorkerId("dead"), WorkerId("alive")
    assert ledger.elect("sweep", dead, ttl=TTL)
    world.step_clock(step)
    ledger.elect("sweep", alive, ttl=TTL)
    world.pass_time(TTL + LITTLE)
    assert ledger.elect("sweep", alive, ttl=TTL)
    assert not ledger.elect("sweep", dead, ttl=TTL)


def test_a_step_back_takes_no_role_from_who_goes_on_asking(world: RedisWorld) -> None:
    ledger = world.caller(0).ledger
    holder, other = WorkerId("holder"), WorkerId("other")
    assert ledger.elect("sweep", holder, ttl=TTL)
    world.step_clock(timedelta(minutes=-10))
    for _ in range(4):
        assert not ledger.elect("sweep", other, ttl=TTL)
        world.pass_time(TTL / 2)
        assert ledger.elect("sweep", holder, ttl=TTL)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_worker_that_died_vanishes_soon_and_one_that_lives_stays_though_the_clock_has_stepped(
    world: RedisWorld, step: timedelta
) -> None:
    registry = world.caller(0)
    dead, alive = make_worker("dead"), make_worker("alive")
    for worker in (dead, alive):
        registry.workers.announce(worker, ttl=TTL)
    world.step_clock(step)
    for _ in range(3):
        registry.workers.announce(alive, ttl=TTL)
        assert alive.worker_id in present(registry)
        world.pass_time(TTL / 2)
    assert present(registry) == {alive.worker_id}
    registry.workers.leave(alive.worker_id)
    assert present(registry) == set()
