"""What `queues ls` tells of a queue beside its depth."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from jobqueue.brokers import open_broker
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.registry import open_registry
from jobqueue.registry.base import Registry
from jobqueue.registry.presence import WorkerRecord
from jobqueue.registry.values import Submission
from jobqueue.resources import Offer, Resources
from producers.cli import jobqueue

NEEDS = Resources(cpus=2, memory_bytes=2**30, disk_bytes=2**30, shm_bytes=2**20, gpus=4, gpu_memory_bytes=24 * 2**30)


@pytest.fixture
def queue(project: str) -> str:
    with closing(open_broker("memory://", lease=timedelta(seconds=1))) as broker:
        broker.queues.create(f"{project}_gpu")
    return f"{project}_gpu"


def fill(registry: Registry, queue: str) -> None:
    """One that runs, two that wait, one worker, and what they ask for."""
    now = datetime.now(UTC)
    submissions = [
        Submission(
            id=make_experiment_id(),
            queue=queue,
            project="p",
            resources=NEEDS,
            submitted_at=now - timedelta(hours=hours),
            expires_at=now + timedelta(hours=1),
            spec_digest=str(hours),
        )
        for hours in (3, 2, 1)
    ]
    registry.experiments.register(*submissions)
    node, worker = NodeId("host"), WorkerId("gpu0@host")
    registry.leases.acquire(submissions[0], worker_id=worker, node_id=node, ttl=timedelta(minutes=1), platform_budget=5)
    offer = Offer(cpus=1, memory_bytes=1, disk_bytes=1)
    record = WorkerRecord(worker_id=worker, node_id=node, queues=("x", queue), offer=offer, runtime="fake")
    registry.workers.announce(record, ttl=timedelta(minutes=1))
    registry.needs.note(queue, NEEDS)


def test_it_tells_who_serves_a_queue_what_runs_and_waits_and_what_is_asked_for(queue: str) -> None:
    fill(open_registry("memory://"), queue)
    shown = json.loads(CliRunner().invoke(jobqueue, ["queues", "ls", queue, "-o", "json"]).stdout)
    (row, *companions) = shown
    assert (row["queue"], row["ready"], row["unacked"], row["consumers"]) == (queue, 0, None, None)
    assert (row["workers"], row["running"], row["waiting"]) == (1, 1, 2)
    waited = datetime.now(UTC) - datetime.fromisoformat(row["oldest_waiting_at"])
    assert timedelta(hours=2) <= waited < timedelta(hours=2, minutes=5)
    assert row["needs"]["gpus"] == 4
    bare = [companion["queue"] for companion in companions if "workers" not in companion]
    assert bare == [f"{queue}_dead", f"{queue}_first"]
    table = CliRunner().invoke(jobqueue, ["queues", "ls", queue]).stdout
    assert "2 cpus, 1 GiB, 4 GPUs of 24 GiB" in table
    assert "2h" in table


def test_without_a_registry_the_broker_is_shown_all_the_same(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_REGISTRY_URL", "redis+socket:///nowhere/redis.sock")
    result = CliRunner().invoke(jobqueue, ["queues", "ls", queue, "-o", "json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["ready"] == 0
    assert "warning" in result.stderr
