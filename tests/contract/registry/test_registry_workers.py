"""Every registry knows who is there."""

from dataclasses import replace

from services.registries import LONG, SHORT, make_worker
from services.waiting import wait_until

from jobqueue.ids import NodeId, make_experiment_id
from jobqueue.registry.base import (
    Registry,
)
from jobqueue.registry.presence import Drain


def test_a_worker_is_present_until_it_leaves(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    registry.workers.announce(replace(worker, experiment_ids=()), ttl=LONG)
    registry.workers.announce(worker, ttl=LONG)
    assert [known for known in registry.workers.present() if known.worker_id == worker.worker_id] == [worker]
    registry.workers.leave(worker.worker_id)
    registry.workers.leave(worker.worker_id)
    assert worker not in registry.workers.present()


def test_a_silent_worker_vanishes_and_comes_back(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    registry.workers.announce(worker, ttl=SHORT)
    wait_until(lambda: worker not in registry.workers.present(), what="the silent worker is gone")
    registry.workers.announce(worker, ttl=LONG)
    assert worker in registry.workers.present()


def test_a_worker_that_says_little_is_kept_as_it_is(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    bare = replace(worker, started_at=None, free_disk_bytes=None, gauges=(), devices=(), version="", host="")
    registry.workers.announce(bare, ttl=LONG)
    assert bare in registry.workers.present()
    registry.workers.leave(bare.worker_id)


def test_a_worker_learns_whether_it_or_its_node_is_to_drain_until_that_is_taken_back(registry: Registry) -> None:
    worker = replace(make_worker(make_experiment_id()), node_id=NodeId(make_experiment_id()))
    whole, part = Drain(target=worker.node_id), Drain(target=worker.worker_id, is_hurried=True)
    assert registry.workers.announce(worker, ttl=LONG) is None
    registry.workers.drain(whole)
    registry.workers.leave(worker.worker_id)
    assert registry.workers.announce(worker, ttl=LONG) == whole
    registry.workers.drain(part)
    assert registry.workers.announce(worker, ttl=LONG) == part, "the more hurried one counts"
    assert [drain for drain in registry.workers.drains() if drain in (whole, part)] == sorted(
        (whole, part), key=lambda drain: drain.target
    )
    assert registry.workers.resume(part.target)
    assert not registry.workers.resume(part.target)
    assert registry.workers.announce(worker, ttl=LONG) == whole
    assert registry.workers.resume(whole.target)
    assert registry.workers.announce(worker, ttl=LONG) is None
    registry.workers.leave(worker.worker_id)


def test_of_one_target_the_last_wish_counts(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    for is_hurried in (True, False):
        registry.workers.drain(Drain(target=worker.worker_id, is_hurried=is_hurried))
    assert registry.workers.announce(worker, ttl=LONG) == Drain(target=worker.worker_id)
    registry.workers.resume(worker.worker_id)
    registry.workers.leave(worker.worker_id)
