"""What a worker takes of a Redis at a time where a flood of what it refuses lies in a queue."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis
from services.broker_client import LEASE, consumers, publish, request_queue
from services.redis import RedisServer

from jobqueue.brokers import open_broker, redis_transport
from jobqueue.brokers.base import Broker
from jobqueue.brokers.copies import LARGEST_BYTES
from jobqueue.brokers.precedence import IN_A_ROW
from jobqueue.brokers.redis_server import RECEIVE_SOME, mail_hash, mail_index, mail_keys
from jobqueue.routing import first_queue


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[Broker]:
    with closing(open_broker(redis_server.url, lease=LEASE)) as opened:
        yield opened


@pytest.mark.parametrize(("size", "there", "taken"), [(LARGEST_BYTES, 8, 1), (LARGEST_BYTES // 4, 8, 4), (9, 70, 64)])
def test_many_messages_are_taken_at_a_time_and_not_many_bytes(
    redis_server: RedisServer, broker: Broker, size: int, there: int, taken: int
) -> None:
    with request_queue(broker) as queue, closing(Redis.from_url(redis_server.url)) as client:
        client.lpush(queue, *[bytes(size)] * there)
        found = client.register_script(RECEIVE_SOME)(keys=mail_keys(queue)[1:], args=["tag:", 60, 64])
        assert len(found) == client.hlen(mail_hash(queue)) == client.zcard(mail_index(queue)) == taken
        assert client.llen(queue) == there - taken


@pytest.mark.parametrize("seconds", [0.0, redis_transport._LONGEST_SECONDS])
def test_what_waits_behind_a_flood_has_its_turn_though_others_go_ahead(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(redis_transport, "_LONGEST_SECONDS", seconds)
    with request_queue(broker) as queue, consumers(broker) as consume:
        for body in (*[b"garbage"] * 20, b"other"):
            publish(broker, queue, body)
        for _ in range(3 * IN_A_ROW):
            publish(broker, first_queue(queue), b"fast")
        consumer = consume(queue)
        consumer.connection.transport.is_refused = lambda message: bytes(message.body) == b"garbage"
        taken = []
        for _ in range(2 * IN_A_ROW + 1):
            message = consumer.next()
            taken.append(bytes(message.body))
            message.ack()
    assert taken == [*[b"fast"] * IN_A_ROW, b"other", *[b"fast"] * IN_A_ROW]
