"""Which other node could begin at once what waits here."""

import os
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from services.node import FakeNode

from jobqueue.errors import RegistryUnavailable
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.registry.pauses import Pause
from jobqueue.registry.presence import DRAINING, WorkerRecord
from jobqueue.resources import Offer, Resources
from workers.attempt.elsewhere import AWAY, find_idle, is_away, note_leaving

GIB = 2**30
TWO = Resources(cpus=1, memory_bytes=GIB, disk_bytes=0, shm_bytes=0, gpus=2)


def announce(fake: FakeNode, name: str = "gpu0@free", *, gpus: int = 2, **fields: Any) -> None:
    record = WorkerRecord(
        worker_id=WorkerId(name),
        node_id=NodeId(name.partition("@")[2]),
        queues=(fake.queue,),
        offer=Offer(cpus=4, memory_bytes=8 * GIB, disk_bytes=GIB, gpu_memory_bytes=(16 * GIB,) * gpus),
        runtime="docker",
    )
    fake.registry.workers.announce(replace(record, **fields), ttl=timedelta(minutes=5))


def idle(fake: FakeNode) -> set[str]:
    return set(find_idle(fake.site, queue=fake.queue, resources=TWO))


def test_a_node_is_idle_when_all_of_its_workers_are(node: FakeNode) -> None:
    announce(node)
    assert idle(node) == {"free"}
    announce(node, "gpu1@free", experiment_ids=("x",))
    assert idle(node) == set()
    announce(node, "gpu1@free", state=DRAINING)
    assert idle(node) == set()
    announce(node, "gpu1@free")
    assert idle(node) == {"free"}


def test_a_node_that_could_not_begin_it_is_not_looked_for(node: FakeNode) -> None:
    announce(node, "gpu0@small", gpus=1)
    announce(node, "gpu0@other", queues=("other_gpu",))
    announce(node, "gpu0@here", node_id=node.site.node_id)
    assert idle(node) == set()
    announce(node)
    node.registry.pauses.pause(Pause(queue=node.queue, at=node.clock(), by="somebody"))
    assert idle(node) == set(), "nobody takes from a paused queue"


def test_a_registry_that_is_away_keeps_who_waits_where_he_is(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> list[WorkerRecord]:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(node.registry.workers, "present", away)
    assert idle(node) == set()


def test_what_has_left_is_away_for_a_while_and_then_forgotten(node: FakeNode) -> None:
    first, second = make_experiment_id(), make_experiment_id()
    note_leaving(node.site, first)
    assert is_away(node.site, first)
    assert not is_away(node.site, second)
    (noted,) = (path for path in node.site.leases.parent.rglob(first))
    before = time.time() - AWAY.total_seconds()
    os.utime(noted, (before, before))
    assert not is_away(node.site, first)
    note_leaving(node.site, second)
    assert not noted.exists()
