"""What becomes of experiments whose messages are lost, whose queue is gone, and which nobody started in time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.errors import BrokerUnavailable
from jobqueue.ids import WorkerId, make_experiment_id
from jobqueue.lifecycle import Reason, State
from jobqueue.publishing import Publisher
from jobqueue.registry.base import Submission
from jobqueue.registry.pauses import Pause
from jobqueue.routing import first_queue
from workers.bootstrap import Node
from workers.node import sweep as module
from workers.node.sweep import ROLE, Sweeper


class Published:
    """A publisher that only notes what it was given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.error: Exception | None = None

    def publish(self, submissions: list[Submission]) -> None:
        if self.error:
            raise self.error
        self.messages += [(submission.queue, submission.message) for submission in submissions]


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def sweeper(node: FakeNode, published: Published, monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    monkeypatch.setattr(module, "UNSEEN_LEASES", 0)
    part: Any = SimpleNamespace(site=node.site, broker=node.broker, queues=(node.queue,))
    return Sweeper(cast("Node", part), cast("Publisher", published))


def test_what_no_queue_holds_is_published_again_once(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    message = node.message()
    node.register(message)
    sweeper.sweep()
    assert published.messages == [(first_queue(node.queue), message.message)]


def test_in_a_queue_without_a_companion_it_is_published_as_before(
    node: FakeNode, sweeper: Sweeper, published: Published
) -> None:
    node.broker.queues.delete(first_queue(node.queue))
    node.register(node.message())
    sweeper.sweep()
    assert [queue for queue, _message in published.messages] == [node.queue]


def test_nothing_is_lost_in_a_queue_that_is_paused(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    node.register(node.message())
    node.registry.pauses.pause(Pause(queue=node.queue, at=datetime.now(UTC), by="ann@desk"))
    sweeper.sweep()
    assert published.messages == []
    node.registry.pauses.resume(node.queue)
    sweeper.sweep()
    assert len(published.messages) == 1


def test_what_waits_in_its_queue_is_not_lost(
    node: FakeNode, sweeper: Sweeper, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OLDEST", 0)
    for _ in range(2):
        node.register(node.message())
        node.broker.post.send(node.queue, b"a message", content_type="x")
    sweeper.sweep()
    assert published.messages == []
    node.register(node.message())
    sweeper.sweep()
    assert len(published.messages) == 3


def test_what_was_lost_is_found_behind_a_queue_that_is_never_empty(
    node: FakeNode, sweeper: Sweeper, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OLDEST", 1)
    messages = [node.message() for _ in range(2)]
    for message in messages:
        node.register(message)
        node.broker.post.send(node.queue, b"a copy of something else", content_type="x")
    for found in (messages[:1], messages, messages):
        sweeper.sweep()
        assert [body for _queue, body in published.messages] == [message.message for message in found]


def test_only_one_worker_sweeps(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    node.register(node.message())
    assert node.registry.ledger.elect(f"{ROLE} {node.queue}", WorkerId("other@host"), ttl=timedelta(minutes=1))
    sweeper.sweep()
    assert published.messages == []


def test_what_is_running_or_over_is_left_alone(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    message = node.message()
    node.register(message)
    running = node.start(message)
    container = node.container()
    sweeper.sweep()
    container.finish()
    running.join()
    sweeper.sweep()
    assert published.messages == []


def test_what_expired_unseen_ends_though_nobody_has_its_message(
    node: FakeNode, sweeper: Sweeper, published: Published
) -> None:
    expires_at = datetime.now(UTC) + timedelta(milliseconds=50)
    message = node.message(expires_at=expires_at)
    node.register(message)
    wait_until(lambda: datetime.now(UTC) > expires_at, what="its expiry")
    sweeper.sweep()
    assert (node.record(message).state, node.record(message).reason) == (State.FAILED, Reason.EXPIRED)
    assert [report.reason for report in node.reports() if report.state] == [Reason.EXPIRED]
    marker = node.marker(message)
    assert marker is not None
    assert marker.reason is Reason.EXPIRED
    assert published.messages == []


def test_what_has_lost_its_queue_is_cancelled(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    message = node.message(cpus=1000)
    node.register(message)
    node.broker.queues.delete(node.queue)
    sweeper.sweep()
    assert (node.record(message).state, node.record(message).reason) == (State.CANCELLED, Reason.QUEUE_DELETED)
    assert (published.messages, node.runtime.containers) == ([], [])


def test_a_broker_that_is_away_is_asked_again_later(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    message = node.message()
    node.register(message)
    published.error = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        sweeper.sweep()
    published.error = None
    sweeper.sweep()
    assert published.messages == [(first_queue(node.queue), message.message)]


def test_what_another_broker_may_hold_is_left_alone(node: FakeNode, sweeper: Sweeper, published: Published) -> None:
    elsewhere = replace(node.register(node.message()), id=make_experiment_id(), queue="elsewhere_cpu")
    node.registry.experiments.register(elsewhere)
    node.clock.ahead = timedelta(minutes=1)
    sweeper.sweep()
    assert [queue for queue, _message in published.messages] == [first_queue(node.queue)]
    assert node.registry.experiments.get(elsewhere.id).state is State.QUEUED
    [lost] = node.registry.ledger.lost(timedelta(seconds=30), limit=10)
    assert lost.id == elsewhere.id, "whoever serves its queue is to find it"
