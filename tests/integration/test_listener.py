"""A listener outlives its brokers: real Redis and RabbitMQ, stopped and killed under it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from services.process import Process
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import encode_report
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.keys import KeyRing
from jobqueue.report import Report
from producers.listener import listen

LEASE = timedelta(seconds=1)
BACK = timedelta(seconds=90)


@dataclass
class Books:
    """What the callback was given."""

    reports: list[Report] = field(default_factory=list)

    def sequences(self) -> list[int]:
        return [report.sequence for report in self.reports]


@pytest.fixture(params=["redis_server", "rabbitmq_server"])
def server(request: pytest.FixtureRequest) -> tuple[str, Process]:
    running = request.getfixturevalue(request.param)
    return running.url, running.process


@pytest.fixture
def broker(server: tuple[str, Process]) -> Iterator[Broker]:
    opened = open_broker(server[0], lease=LEASE)
    yield opened
    opened.close()


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    name = f"q-{uuid4().hex[:8]}_reporting"
    yield name
    broker.queues.delete(name)


@contextmanager
def listening(url: str, queue: str) -> Iterator[Books]:
    """Listen in a thread, as a program that keeps books does."""
    books, stop, broker = Books(), threading.Event(), open_broker(url, lease=LEASE)
    options = {"keys": KeyRing(Path("/nonexistent")), "stop": stop}
    thread = threading.Thread(target=listen, args=(broker, [queue], books.reports.append), kwargs=options)
    thread.start()
    try:
        yield books
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
        broker.close()


def send(broker: Broker, queue: str, sequence: int) -> bool:
    report = Report(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        experiment_id=ExperimentId("exp-01k0000000000000000000000a"),
        worker_id=WorkerId("cpu@host"),
        sequence=sequence,
        attempt=1,
        token=1,
        payload="text",
    )
    return broker.post.send(queue, encode_report(report), content_type="application/x-protobuf")


def test_a_listener_goes_on_after_its_broker_came_back(server: tuple[str, Process], broker: Broker, queue: str) -> None:
    url, process = server
    with listening(url, queue) as books:
        wait_until(lambda: broker.queues.exists(queue), what="the reporting queue")
        for sequence in range(3):
            assert send(broker, queue, sequence)
        wait_until(lambda: books.sequences() == [0, 1, 2], what="the first reports")
        process.stop()
        process.start()
        for sequence in range(3, 6):
            assert send(broker, queue, sequence)
        wait_until(lambda: books.sequences() == [0, 1, 2, 3, 4, 5], what="the later reports", within=BACK)


def test_reports_wait_for_a_listener_that_is_away(server: tuple[str, Process], broker: Broker, queue: str) -> None:
    url, process = server
    broker.queues.create_plain(queue)
    for sequence in range(3):
        assert send(broker, queue, sequence)
    process.stop()
    process.start()
    with listening(url, queue) as books:
        wait_until(lambda: books.sequences() == [0, 1, 2], what="the reports that waited", within=BACK)
        broker.queues.delete(queue)
        wait_until(lambda: broker.queues.exists(queue), what="the queue made again", within=BACK)


def test_repeated_and_foreign_messages_do_not_disturb(server: tuple[str, Process], broker: Broker, queue: str) -> None:
    url, _ = server
    broker.queues.create_plain(queue)
    send(broker, queue, 0)
    broker.post.send(queue, b"\xff foreign", content_type="text/plain")
    send(broker, queue, 0)
    send(broker, queue, 1)
    with listening(url, queue) as books:
        wait_until(lambda: 1 in books.sequences(), what="the last report")
        wait_until(lambda: broker.queues.depth(queue).ready == 0, what="an empty queue")
    assert books.sequences() == [0, 1]
