"""What was put off on RabbitMQ comes back, whatever else somebody has laid where it waits."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from amqp import Message
from kombu import Connection
from services.broker_client import BODY, COMES_BACK, LEASE, consumers, publish, request_queue
from services.rabbitmq import RabbitServer

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.routing import deferred_queue, first_queue


@pytest.fixture
def broker(rabbitmq_server: RabbitServer) -> Iterator[Broker]:
    with closing(open_broker(rabbitmq_server.url, lease=LEASE)) as opened:
        yield opened


@pytest.mark.parametrize("properties", [{}, {"expiration": str(30 * 86_400_000)}], ids=["never", "in a month"])
def test_what_would_stay_there_keeps_nothing_behind_it(
    rabbitmq_server: RabbitServer, broker: Broker, properties: dict[str, str]
) -> None:
    with request_queue(broker) as queue, consumers(broker) as consume:
        with Connection(rabbitmq_server.url) as client:
            channel: Any = client.default_channel
            channel.basic_publish(Message(b"stays", **properties), exchange="", routing_key=deferred_queue(queue))
            channel.queue_declare(deferred_queue(queue), passive=True)
        publish(broker, queue)
        consumer = consume(queue)
        broker.deliveries.defer(consumer.next(), queue=queue, delay=timedelta(seconds=1))
        for body in (b"stays", BODY):
            message = consumer.next(COMES_BACK)
            assert (bytes(message.body), message.delivery_info["routing_key"]) == (body, first_queue(queue))
            message.ack()
