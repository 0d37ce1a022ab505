"""A queue is gone when the broker has said so twice in a row."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import NoReturn

import pytest

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.errors import BrokerUnavailable
from workers.attempt.queue_watch import QueueWatch


@pytest.fixture
def broker() -> Iterator[Broker]:
    with closing(open_broker("memory://", lease=timedelta(seconds=1))) as opened:
        yield opened


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    name = f"q{uuid.uuid4().hex[:8]}_cpu"
    broker.queues.create(name)
    yield name
    broker.queues.delete(name)


def test_a_queue_that_exists_is_not_gone(broker: Broker, queue: str) -> None:
    watch = QueueWatch(broker.queues)
    assert [watch.gone([queue]) for _ in range(3)] == [set(), set(), set()]


def test_the_second_no_in_a_row_counts(broker: Broker, queue: str) -> None:
    watch = QueueWatch(broker.queues)
    broker.queues.delete(queue)
    assert [watch.gone([queue, queue]) for _ in range(3)] == [set(), {queue}, {queue}]


def test_a_queue_that_comes_back_is_believed_in_again(broker: Broker, queue: str) -> None:
    watch = QueueWatch(broker.queues)
    broker.queues.delete(queue)
    assert watch.gone([queue]) == set()
    broker.queues.create(queue)
    assert watch.gone([queue]) == set()
    broker.queues.delete(queue)
    assert [watch.gone([queue]) for _ in range(2)] == [set(), {queue}]


def test_a_broker_that_does_not_answer_says_nothing(
    broker: Broker, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(_: str) -> NoReturn:
        raise BrokerUnavailable("down")

    watch = QueueWatch(broker.queues)
    broker.queues.delete(queue)
    assert watch.gone([queue]) == set()
    with monkeypatch.context() as patch:
        patch.setattr(broker.queues, "exists", unavailable)
        assert [watch.gone([queue]) for _ in range(3)] == [set()] * 3
    assert [watch.gone([queue]) for _ in range(2)] == [set(), {queue}]
