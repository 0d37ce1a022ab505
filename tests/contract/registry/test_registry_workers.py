"""Every registry knows who is there."""

from dataclasses import replace

from services.registries import LONG, SHORT, make_worker
from services.waiting import wait_until

from jobqueue.ids import make_experiment_id
from jobqueue.registry.base import (
    Registry,
)


def test_a_worker_is_present_until_it_leaves(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    registry.workers.announce(replace(worker, experiment_id=None), ttl=LONG)
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
