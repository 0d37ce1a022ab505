"""Every registry knows what the experiments of a queue ask for, as far as their messages were seen."""

from datetime import timedelta
from uuid import uuid4

import pytest
from services.waiting import wait_until

from jobqueue.registry import memory_needs, redis_needs
from jobqueue.registry.base import Registry
from jobqueue.resources import Resources

LARGE = Resources(cpus=16.5, memory_bytes=2**41, disk_bytes=2**33, shm_bytes=2**20, gpus=8, gpu_memory_bytes=80 * 2**30)
SMALL = Resources(cpus=0.25, memory_bytes=2**27, disk_bytes=2**34, shm_bytes=2**26)


def make_queue() -> str:
    return f"q{uuid4().hex[:10]}_gpu"


def test_what_one_message_asks_for_is_known(registry: Registry) -> None:
    queue = make_queue()
    assert queue not in registry.needs.known()
    assert registry.needs.known([queue]) == {}
    registry.needs.note(queue, LARGE)
    assert registry.needs.known([queue, make_queue()]) == {queue: LARGE}
    assert registry.needs.known()[queue] == LARGE


def test_of_several_messages_the_least_of_each_amount_is_kept_whoever_came_first(registry: Registry) -> None:
    least = Resources(cpus=0.25, memory_bytes=2**27, disk_bytes=2**33, shm_bytes=2**20)
    for order in ((LARGE, SMALL), (SMALL, LARGE)):
        queue = make_queue()
        for resources in order:
            registry.needs.note(queue, resources)
        assert registry.needs.known([queue]) == {queue: least}


def test_what_was_learnt_is_forgotten_however_often_it_was_seen_since(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue()
    for module in (memory_needs, redis_needs):
        monkeypatch.setattr(module, "LEARNT_FOR", timedelta(milliseconds=700))
    registry.needs.note(queue, SMALL)

    def is_forgotten() -> bool:
        found = registry.needs.known([queue])
        if found:
            registry.needs.note(queue, LARGE)
        return not found

    wait_until(is_forgotten, what="it is forgotten")
    assert queue not in registry.needs.known()
    monkeypatch.undo()
    registry.needs.note(queue, LARGE)
    assert registry.needs.known([queue]) == {queue: LARGE}
