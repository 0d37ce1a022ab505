"""A message on its way from Redis to a worker is never lost, whenever the worker dies."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis
from services.broker_client import COMES_BACK, LEASE, Consumer, publish, request_queue
from services.redis import RedisServer
from services.site import Site, open_site
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.brokers.redis_server import RECEIVE, mail_hash, mail_keys

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture
def site(redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, broker=redis_server.url, registry=redis_server.url, runtime="process") as opened:
        yield opened


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[Broker]:
    with closing(open_broker(redis_server.url, lease=LEASE)) as opened:
        yield opened


def test_what_comes_while_its_worker_is_frozen_waits_for_the_next_one(site: Site, redis_server: RedisServer) -> None:
    with (
        site.make_worker("first") as first,
        closing(Redis.from_url(redis_server.url, decode_responses=True)) as client,
    ):
        assert site.client.submit(image="any:1", command=["true"]).result(timeout=90) == {"exit_code": 0}
        wait_until(lambda: waiters(client), what="a worker that waits for a message")
        first.pause()
        experiment = site.client.submit(image="any:1", command=["true"])
        # Longer than the frozen worker waits: Redis has answered it by then.
        wait_until(lambda: not waiters(client), what="the end of the wait", within=timedelta(seconds=60))
        first.kill()
        assert client.llen(site.queue) == 1
        with site.make_worker("second"):
            assert experiment.result(timeout=90) == {"exit_code": 0}


def waiters(client: "Redis") -> list[object]:
    return [each for each in client.client_list() if "b" in each["flags"]]


def test_what_was_taken_by_a_worker_that_died_before_it_knew_comes_back(
    redis_server: RedisServer, broker: Broker
) -> None:
    with request_queue(broker) as queue, closing(Redis.from_url(redis_server.url)) as client:
        publish(broker, queue)
        tag = str(uuid4())
        taken, _ = client.register_script(RECEIVE)(keys=mail_keys(queue), args=[tag, 1, queue])
        assert json.loads(taken)["headers"]["id"] == "exp-1"
        assert broker.queues.depth(queue).ready == 0
        with closing(Consumer(broker, queue)) as consumer:
            message = consumer.next(COMES_BACK)
            assert message.headers["id"] == "exp-1"
            assert client.hlen(mail_hash(queue)) == 0
            message.ack()


def test_what_was_put_off_again_and_again_leaves_no_trail(
    redis_server: RedisServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobqueue.brokers.redis.SURELY_BACK_SECONDS", 0)
    with (
        request_queue(broker) as queue,
        closing(Redis.from_url(redis_server.url)) as client,
        closing(Consumer(broker, queue)) as consumer,
    ):
        publish(broker, queue)
        for _ in range(4):
            broker.deliveries.defer(consumer.next(COMES_BACK), queue=queue, delay=timedelta(0))
        consumer.next(COMES_BACK).ack()
        assert sum(client.zcard(key) for key in client.scan_iter(f"jobqueue:deferred:{queue}")) <= 1


def test_messages_of_several_queues_reach_one_worker(broker: Broker) -> None:
    with request_queue(broker) as first, request_queue(broker) as second, closing(Consumer(broker, first)) as consumer:
        consumer.consumer.add_queue(broker.request_queue(second))
        consumer.consumer.consume()
        for queue in (second, first, second):
            publish(broker, queue, queue.encode())
            message = consumer.next()
            assert message.body == queue.encode()
            message.ack()


def test_a_worker_waits_quietly_for_a_queue_that_was_deleted(broker: Broker, redis_server: RedisServer) -> None:
    with (
        request_queue(broker) as queue,
        closing(Redis.from_url(redis_server.url)) as client,
        closing(Consumer(broker, queue)) as consumer,
    ):
        broker.queues.delete(queue)
        client.lpush(queue, b"left over")
        assert consumer.next(timedelta(seconds=1)) is None
        before = int(client.info("stats")["total_commands_processed"])
        assert consumer.next(timedelta(seconds=2)) is None
        assert (
            int(client.info("stats")["total_commands_processed"]) - before < 500
        )  # a hot loop asks thousands of times
        broker.queues.create(queue)
        assert consumer.next().body == b"left over"
