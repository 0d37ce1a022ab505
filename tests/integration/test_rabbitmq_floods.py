"""What RabbitMQ sends a worker at a time where a flood of what it refuses lies in a queue."""

import inspect
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import kombu
import pytest
from services.broker_client import LEASE, Consumer, consumers, patiently, request_queue
from services.rabbitmq import RabbitServer
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.brokers.rabbitmq_transport import _FLOOD as FLOOD
from jobqueue.brokers.rabbitmq_transport import _MOST_AT_A_TIME as MOST_AT_A_TIME

_NOTHING_MORE = timedelta(seconds=1)
_A_MOMENT = timedelta(milliseconds=200)


@pytest.fixture
def broker(rabbitmq_server: RabbitServer) -> Iterator[Broker]:
    with closing(open_broker(rabbitmq_server.url, lease=LEASE)) as opened:
        yield opened


def is_garbage(message: Any) -> bool:
    return bytes(message.body) == b"garbage"


def ready(broker: Broker, queue: str) -> int:
    return patiently(lambda: broker.queues.depth(queue).ready)


def fill(broker: Broker, queue: str, *bodies: bytes) -> None:
    with (
        kombu.Connection(
            broker.celery_settings()["broker_url"], transport_options={"confirm_publish": True}
        ) as connection,
        connection.Producer() as producer,
    ):
        for body in bodies:
            producer.publish(body, routing_key=queue, content_type="application/x-test", content_encoding="binary")


def take(consumer: Consumer, count: int) -> list[bytes]:
    """Acknowledge so many messages, each before the next one is asked for."""
    messages = [message for _ in range(count) if (message := consumer.next()) and not message.ack()]
    return [bytes(message.body) for message in messages]


def test_a_flood_is_sent_many_at_a_time(broker: Broker) -> None:
    there, seen = 2 * MOST_AT_A_TIME, 0

    def is_refused(message: Any) -> bool:
        nonlocal seen
        seen += is_garbage(message)
        if seen == FLOOD:
            assert ready(broker, queue) >= there - FLOOD
        elif seen == FLOOD + 1:
            wait_until(lambda: ready(broker, queue) <= there - FLOOD - MOST_AT_A_TIME, what="many sent at a time")
        return is_garbage(message)

    with request_queue(broker) as queue, consumers(broker) as consume:
        fill(broker, queue, *[b"garbage"] * there, b"sound")
        consumer = consume(queue)
        consumer.connection.transport.is_refused = is_refused
        assert take(consumer, 1) == [b"sound"]
        wait_until(lambda: seen == there, what="no garbage left")
        assert ready(broker, queue) == 0


def test_a_flood_that_ends_and_begins_again_and_again_is_taken_without_waiting_within_a_wait(broker: Broker) -> None:
    depths: set[int] = set()

    def is_refused(message: Any) -> bool:
        depths.add(len(inspect.stack(0)))
        return is_garbage(message)

    with request_queue(broker) as queue, consumers(broker) as consume:
        fill(broker, queue, *[*[b"garbage"] * FLOOD, b"sound"] * MOST_AT_A_TIME)
        consumer = consume(queue)
        consumer.connection.transport.is_refused = is_refused
        assert take(consumer, MOST_AT_A_TIME) == [b"sound"] * MOST_AT_A_TIME
    assert len(depths) == 1


def test_after_a_flood_one_comes_at_a_time_again(broker: Broker) -> None:
    sound = [f"sound {number}".encode() for number in range(2 * MOST_AT_A_TIME)]
    with request_queue(broker) as queue, consumers(broker) as consume:
        for _ in range(3):
            fill(broker, queue, *[b"garbage"] * 3 * FLOOD, *sound)
            consumer = consume(queue)
            consumer.connection.transport.is_refused = is_garbage
            assert sorted(take(consumer, len(sound))) == sorted(sound)
            fill(broker, queue, b"one", b"another")
            message = consumer.next()
            assert consumer.next(_NOTHING_MORE) is None
            message.ack()
            assert take(consumer, 1) == [b"another"]
            consumer.close()


def test_a_queue_that_is_left_after_a_flood_sends_nothing_until_it_is_consumed_again(broker: Broker) -> None:
    with request_queue(broker) as queue, consumers(broker) as consume:
        consumer = consume(queue)
        consumer.connection.transport.is_refused = is_garbage
        fill(broker, queue, *[b"garbage"] * 2 * FLOOD, b"sound")
        assert take(consumer, 1) == [b"sound"]
        fill(broker, queue, *[b"garbage"] * 2 * FLOOD)
        wait_until(lambda: not (consumer.next(_A_MOMENT) or ready(broker, queue)), what="no garbage left")
        consumer.consumer.cancel_by_queue(queue)
        fill(broker, queue, b"late", b"later")
        assert consumer.next(_NOTHING_MORE) is None
        assert ready(broker, queue) == 2
        for consumed in broker.consumed(queue):
            if consumed.name == queue:
                consumer.consumer.add_queue(consumed)
        consumer.consumer.consume()
        assert consumer.next().body == b"late"
        assert consumer.next(_NOTHING_MORE) is None


def test_nothing_comes_any_more_once_a_queue_that_is_flooded_was_left(broker: Broker) -> None:
    with request_queue(broker) as queue, consumers(broker) as consume:
        fill(broker, queue, *[b"garbage"] * 3 * MOST_AT_A_TIME)
        consumer = consume(queue)
        seen: list[Any] = []
        consumer.connection.transport.is_refused = lambda message: seen.append(message) or is_garbage(message)
        while len(seen) <= FLOOD:  # many at a time are on their way
            consumer.next(_A_MOMENT)
        consumer.consumer.cancel()
        # Who stops reads no more, and what came then would stay with him.
        assert consumer.channel.callbacks == {}
        wait_until(lambda: ready(broker, queue) + len(seen) == 3 * MOST_AT_A_TIME, what="all the others there")


def test_a_connection_is_closed_while_messages_come(broker: Broker) -> None:
    with request_queue(broker) as queue, consumers(broker) as consume:
        consumer = consume(queue)
        fill(broker, queue, *[b"sound"] * 2)
        consumer.connection.release()
        wait_until(lambda: ready(broker, queue) == 2, what="what had come is back")
