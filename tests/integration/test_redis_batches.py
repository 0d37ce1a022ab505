"""What a worker takes of a Redis at a time where a flood of what it refuses lies in a queue."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis
from services.broker_client import LEASE, request_queue
from services.redis import RedisServer

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.brokers.copies import LARGEST_BYTES
from jobqueue.brokers.redis_server import RECEIVE_SOME, mail_hash, mail_index, mail_keys


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
