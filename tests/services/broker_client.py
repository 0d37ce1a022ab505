"""What a test needs of a broker: a worker's side of it, and messages as Celery and the workers send them."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import uuid4

import kombu
import stamina

from jobqueue.brokers.base import Broker, Mail
from jobqueue.errors import BrokerUnavailable

LEASE: Final = timedelta(seconds=3)
# What a silent worker's delivery takes to come back at Redis: the lease, its margin, and the sweep; on a busy machine.
COMES_BACK: Final = timedelta(seconds=60)
SOON: Final = timedelta(seconds=30)
NOT_YET: Final = timedelta(milliseconds=300)
BODY: Final = b"\x00\xff sealed \x81"
# A user is told within two seconds that a broker is away; on a busy machine one that is there may need longer.
_PATIENCE_SECONDS: Final = 40.0
HEADERS: Final = {"lang": "py", "id": "exp-1", "retries": 0, "timelimit": [None, None], "root": None}


T = TypeVar("T")


def patiently(ask: Callable[[], T]) -> T:
    """Return what a broker answers, which is asked again while it is too busy to answer in time."""
    retrying = stamina.retry(on=BrokerUnavailable, attempts=None, timeout=_PATIENCE_SECONDS, wait_max=1.0)
    return retrying(ask)()


class Consumer:
    """What a worker is to a broker: a kombu consumer with the settings that Celery gets, one message at a time."""

    def __init__(self, broker: Broker, queue: str) -> None:
        settings = broker.celery_settings()
        self.connection = kombu.Connection(
            settings.get("broker_read_url", settings["broker_url"]),
            transport_options=settings["broker_transport_options"],
            heartbeat=0,
        )
        self.received: list[Any] = []
        self.channel = self.connection.channel()
        self.consumer = kombu.Consumer(
            self.channel,
            broker.consumed(queue),
            on_message=self.received.append,
            on_decode_error=lambda message, _: self.received.append(message),
            prefetch_count=1,
        )
        self.consumer.consume()

    def next(self, within: timedelta = SOON) -> Any:
        """Return the next delivery; None after `within`."""
        until = time.monotonic() + within.total_seconds()
        while not self.received and time.monotonic() < until:
            with suppress(socket.timeout):
                self.connection.drain_events(timeout=0.1)
        return self.received.pop(0) if self.received else None

    def close(self) -> None:
        with suppress(Exception):
            self.connection.release()


def publish(broker: Broker, queue: str, body: bytes = BODY, headers: dict[str, Any] | None = None) -> None:
    """Publish as Celery does: to the default exchange, with its own headers."""
    settings = broker.celery_settings()
    with kombu.Connection(settings["broker_url"], transport_options=settings["broker_transport_options"]) as connection:
        connection.Producer().publish(
            body,
            routing_key=queue,
            exchange="",
            content_type="application/vnd.test",
            content_encoding="binary",
            headers=HEADERS if headers is None else headers,
            correlation_id="exp-1",
        )


def send(broker: Broker, queue: str, body: bytes) -> bool:
    return broker.post.send(queue, body, content_type="application/x-test", headers={"n": "1"})


def receive(broker: Broker, queue: str, within: timedelta = SOON) -> Mail | None:
    return broker.post.receive(queue, timeout=within)


@contextmanager
def plain_queue(broker: Broker) -> Iterator[str]:
    """Create a queue without companions, and delete it."""
    name = f"plain-{uuid4().hex[:8]}"
    patiently(lambda: broker.queues.create_plain(name))
    yield name
    patiently(lambda: broker.queues.delete(name))


@contextmanager
def request_queue(broker: Broker) -> Iterator[str]:
    """Create a request queue, and delete it."""
    name = f"work-{uuid4().hex[:8]}"
    patiently(lambda: broker.queues.create(name))
    yield name
    patiently(lambda: broker.queues.delete(name))


@contextmanager
def consumers(broker: Broker) -> Iterator[Callable[[str], Consumer]]:
    """Lend what starts a consumer of a queue, and stop those that were started."""
    opened: list[Consumer] = []

    def start(queue: str) -> Consumer:
        opened.append(Consumer(broker, queue))
        return opened[-1]

    yield start
    for consumer in opened:
        consumer.close()
