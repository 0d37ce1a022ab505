"""`queues pause` and `resume`, and what `queues ls` says of a paused queue."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from jobqueue.brokers import open_broker
from jobqueue.ids import NodeId, WorkerId
from jobqueue.registry import open_registry
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer
from producers.cli import jobqueue


@pytest.fixture
def queue(project: str) -> Iterator[str]:
    with closing(open_broker("memory://", lease=timedelta(seconds=1))) as broker:
        broker.queues.create(f"{project}_cpu")
        yield f"{project}_cpu"
        broker.queues.delete(f"{project}_cpu")


def call(*words: str) -> Result:
    return CliRunner().invoke(jobqueue, ["queues", *words])


def test_a_paused_queue_is_shown_with_who_paused_it_until_it_is_resumed(queue: str) -> None:
    done = call("pause", queue, "--reason", "a new image")
    assert (done.exit_code, done.stdout) == (0, f"{queue}\n")
    (row, *_) = json.loads(call("ls", queue, "-o", "json").stdout)
    assert row["paused"]["reason"] == "a new image"
    assert row["paused"]["by"] in call("ls", queue).stdout
    assert "was paused already, by" in call("pause", queue).stderr
    assert call("resume", queue).stdout == f"{queue}\n"
    assert json.loads(call("ls", queue, "-o", "json").stdout)[0]["paused"] is None
    assert "was not paused" in call("resume", queue).stderr


@pytest.mark.parametrize("is_old", [True, False])
def test_whoever_pauses_a_queue_is_told_of_older_workers_that_go_on(queue: str, *, is_old: bool) -> None:
    worker = WorkerRecord(
        worker_id=WorkerId(f"cpu@{queue}"),
        node_id=NodeId(f"{queue}-1a2b"),
        queues=(queue,),
        offer=Offer(cpus=8, memory_bytes=2**35, disk_bytes=2**42),
        runtime="docker",
        takes_first=not is_old,
    )
    workers = open_registry("memory://").workers
    workers.announce(worker, ttl=timedelta(minutes=1))
    told = call("pause", queue).stderr
    workers.leave(worker.worker_id)
    assert (f"older workers that know no pause go on: cpu@{queue}" in told) == is_old


def test_what_is_no_queue_cannot_be_paused(queue: str) -> None:
    done = call("pause", queue, "nobody_cpu", f"{queue}_dead")
    assert f"no such request queue: nobody_cpu, {queue}_dead" in done.stderr
    assert done.exit_code
    assert queue not in open_registry("memory://").pauses.paused()


def test_a_queue_that_was_deleted_is_not_paused_when_it_is_made_again(queue: str) -> None:
    call("pause", queue)
    assert call("delete", queue, "--yes").exit_code == 0
    assert queue not in open_registry("memory://").pauses.paused()
