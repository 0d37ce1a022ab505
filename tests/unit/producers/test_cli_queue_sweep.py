"""Queues have a time, an owner and an end; with a queue end its experiments."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from services.broker_client import Consumer, publish
from services.registries import granted, registered

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.errors import RegistryUnavailable
from jobqueue.lifecycle import Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Registry
from jobqueue.storage import open_store
from jobqueue.storage.markers import read_marker
from producers.cli import jobqueue

PAST = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def registry() -> Registry:
    return open_registry("memory://")


@pytest.fixture
def broker(project: str) -> Iterator[Broker]:
    with closing(open_broker("memory://", lease=timedelta(seconds=5))) as opened:
        yield opened
        for record in opened.queues.listed():
            if record.queue.startswith(project):
                opened.queues.delete(record.queue)


def call(*words: str) -> Result:
    return CliRunner().invoke(jobqueue, ["queues", *words])


def swept(project: str, *words: str) -> dict[str, str]:
    rows = json.loads(call("sweep", "-o", "json", *words).stdout)
    return {row["queue"]: row["what"] for row in rows if row["queue"].startswith(project)}


def test_a_queue_is_made_with_an_expiry_an_owner_and_a_retention(project: str, broker: Broker) -> None:
    queue = f"{project}_s1"
    call("create", queue, "--expires", "7d", "--owner", "session 1", "--retention", "14d")
    (record,) = [record for record in broker.queues.listed() if record.queue == queue]
    assert record.expires_at
    assert timedelta(days=6) < record.expires_at - datetime.now(UTC) <= timedelta(days=7)
    assert (record.owner, record.retention) == ("session 1", timedelta(days=14))
    shown = json.loads(call("ls", queue, "-o", "json").stdout)
    assert shown[0]["owner"] == "session 1"
    assert queue in call("ls", "--all", "-o", "name").stdout.split()
    assert queue not in call("ls", "-o", "name").stdout.split()


def test_deleting_a_queue_cancels_what_was_submitted_to_it(project: str, broker: Broker, registry: Registry) -> None:
    queue, other = f"{project}_cpu", f"{project}_gpu"
    for name in (queue, other):
        broker.queues.create(name)
    waiting, running, elsewhere = (registered(registry, queue=name) for name in (queue, queue, other))
    lease = granted(registry, running).lease
    result = call("delete", queue, "--yes")
    assert (result.exit_code, result.stdout.split()) == (0, [queue])
    assert "cancelled: 1, being stopped: 1" in result.stderr
    record = registry.experiments.get(waiting.id)
    assert (record.state, record.reason) == (State.CANCELLED, Reason.QUEUE_DELETED)
    marker = read_marker(open_store(f"memory://{project}"), waiting.id)
    assert marker
    assert marker.reason is Reason.QUEUE_DELETED
    assert registry.leases.renew(lease, ttl=timedelta(minutes=1)) is Reason.QUEUE_DELETED
    assert registry.experiments.get(elsewhere.id).state is State.QUEUED


def test_nothing_is_deleted_while_the_registry_is_away(
    project: str, broker: Broker, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**_: object) -> None:
        raise RegistryUnavailable("down")

    broker.queues.create(f"{project}_cpu")
    monkeypatch.setattr(registry.experiments, "find", away)
    assert call("delete", f"{project}_cpu", "--yes").exit_code == 69
    assert broker.queues.exists(f"{project}_cpu")


def test_the_sweep_deletes_what_has_expired_and_is_not_needed(project: str, broker: Broker, registry: Registry) -> None:
    names = [f"{project}_{name}" for name in ("eternal", "young", "old", "waiting", "running")]
    eternal, young, old, waiting, running = names
    broker.queues.create(eternal)
    broker.queues.create(young, expires_at=datetime.now(UTC) + timedelta(hours=1))
    for name in (old, waiting, running):
        broker.queues.create(name, expires_at=PAST)
    publish(broker, waiting)
    submission = registered(registry, queue=running)
    kept = "expired, and kept: something waits or runs in it"
    expected = {old: "deleted", waiting: kept, running: kept}
    assert swept(project, "--dry-run") == expected
    assert all(broker.queues.exists(name) for name in names)
    assert swept(project) == expected
    assert [broker.queues.exists(name) for name in names] == [True, True, False, True, True]
    assert swept(project, "--force") == {waiting: "deleted", running: "deleted"}
    assert registry.experiments.get(submission.id).reason is Reason.QUEUE_DELETED
    assert swept(project) == {}


def test_the_sweep_removes_dead_letters_that_are_older_than_the_retention(project: str, broker: Broker) -> None:
    short, long = f"{project}_short", f"{project}_long"
    broker.queues.create(short, retention=timedelta(0))
    broker.queues.create(long, retention=timedelta(days=1))
    for queue in (short, long):
        publish(broker, queue)
        with closing(Consumer(broker, queue)) as consumer:
            broker.deliveries.dead_letter(consumer.next(), queue=queue, reason="BAD_ENVELOPE", detail="")
    assert swept(project, "--dry-run") == {short: "dead letters removed: 1"}
    assert broker.queues.depth(f"{short}_dead").ready == 1
    assert swept(project) == {short: "dead letters removed: 1"}
    assert broker.queues.depth(f"{short}_dead").ready == 0
    assert broker.queues.depth(f"{long}_dead").ready == 1
