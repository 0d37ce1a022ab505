"""SQS as a broker, where it is not like the others: what a consumer asks, gives back, keeps and refuses to send."""

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
import pytest
from services.broker_client import BODY, Consumer, consumers, publish, receive, request_queue
from services.moto import SqsServer
from services.redis import RedisServer
from services.sqs_proxy import SqsProxy, open_sqs_proxy
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.brokers.precedence import IN_A_ROW
from jobqueue.config import Settings
from jobqueue.errors import BrokerUnavailable, InvalidSpec
from jobqueue.keys import ensure_laptop_keys
from jobqueue.routing import dead_letter_queue, first_queue
from producers.client import Client

LEASE = timedelta(seconds=20)
NOT_YET = timedelta(milliseconds=300)
LONG = timedelta(seconds=90)


@pytest.fixture
def proxy(sqs_server: SqsServer) -> Iterator[SqsProxy]:
    with open_sqs_proxy(sqs_server.moto.port) as opened:
        yield opened


def url_of(sqs_server: SqsServer, proxy: SqsProxy, options: str = "") -> str:
    return sqs_server.url.replace(f":{sqs_server.moto.port}", f":{proxy.port}") + options


@pytest.fixture
def broker(sqs_server: SqsServer, proxy: SqsProxy) -> Iterator[Broker]:
    with closing(open_broker(url_of(sqs_server, proxy), lease=LEASE)) as opened:
        yield opened


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    with request_queue(broker) as name:
        yield name


def unacked(broker: Broker, queue: str) -> int:
    return broker.queues.depth(queue).unacked or 0


# Consuming


def test_one_consumer_of_two_queues_takes_from_both_and_asks_one_at_a_time(
    broker: Broker, queue: str, proxy: SqsProxy
) -> None:
    with request_queue(broker) as other, consumers(broker) as consume:
        consumer = consume(queue)
        consumer.consumer.add_queue(broker.request_queue(other))
        consumer.consumer.consume()
        for name in (other, queue, other):
            publish(broker, name, name.encode())
            message = consumer.next()
            assert message.body == name.encode()
            assert message.delivery_info["routing_key"] == name
            message.ack()
    assert proxy.most_at_once["ReceiveMessage"] == 1


def test_a_consumer_with_a_message_asks_for_no_other(broker: Broker, queue: str) -> None:
    with consumers(broker) as consume:
        consumer = consume(queue)
        publish(broker, queue, b"first")
        first = consumer.next()
        publish(broker, queue, b"second")
        assert consumer.next(timedelta(seconds=1)) is None
        assert broker.queues.depth(queue).ready == 1
        first.ack()
        assert consumer.next().body == b"second"


def test_what_comes_for_a_consumer_that_has_gone_is_given_back_at_once(broker: Broker, queue: str) -> None:
    with consumers(broker) as consume:
        gone = consume(queue)
        assert gone.next(NOT_YET) is None  # its poll goes on
        gone.consumer.cancel()
        publish(broker, queue)
        # Nobody drains the connection either: a worker that waits for what runs does not.
        message = consume(queue).next()
        assert message.body == BODY
        message.ack()
        assert gone.received == []


def test_a_worker_that_stops_gives_back_what_it_has_not_begun(broker: Broker, queue: str) -> None:
    publish(broker, queue)
    with consumers(broker) as consume:
        stopped = consume(queue)
        assert stopped.next()
        assert unacked(broker, queue) == 1
        stopped.close()
        message = consume(queue).next(timedelta(seconds=5))
        assert message.body == BODY
        message.ack()


def test_a_poll_that_waits_long_is_answered_as_soon_as_there_is_a_message(
    sqs_server: SqsServer, proxy: SqsProxy
) -> None:
    url = url_of(sqs_server, proxy).replace("wait=2s", "wait=20s")
    with closing(open_broker(url, lease=LEASE)) as broker, request_queue(broker) as queue, consumers(broker) as consume:
        consumer = consume(queue)
        assert consumer.next(NOT_YET) is None
        publish(broker, queue)
        began = time.monotonic()
        message = consumer.next()
        assert time.monotonic() - began < 15  # of the 20 that it would have waited
        message.ack()
    assert proxy.asked["ReceiveMessage"] == 2  # once, without a wait, for what is served before it


# Screening

GARBAGE = b"garbage"


def screen(consumer: Consumer) -> None:
    consumer.connection.transport.is_refused = lambda message: bytes(message.body) == GARBAGE


def test_a_flood_of_what_is_refused_comes_and_goes_many_at_a_time(broker: Broker, queue: str, proxy: SqsProxy) -> None:
    for body in [*[GARBAGE] * 50, BODY]:
        publish(broker, queue, body)
    with consumers(broker) as consume:
        screen(consumer := consume(queue))
        message = consumer.next(LONG)
        assert bytes(message.body) == BODY
        message.ack()
        wait_until(lambda: unacked(broker, queue) == 0, what="all of it deleted", within=LONG)
    assert broker.queues.depth(queue).ready == 0
    # One alone, and then ten at a time; each time what is served before the queue is asked for, too.
    assert 6 <= proxy.asked["DeleteMessageBatch"] < 12
    assert proxy.asked["ReceiveMessage"] < 30
    assert proxy.asked["DeleteMessage"] == 1


def test_what_comes_behind_a_flood_and_finds_no_place_goes_back_at_once(broker: Broker, queue: str) -> None:
    with consumers(broker) as consume:
        screen(consumer := consume(queue))
        for body in [GARBAGE, GARBAGE, b"1", b"2", b"3"]:
            publish(broker, queue, body)
        first = consumer.next(LONG)
        wait_until(lambda: broker.queues.depth(queue).ready == 2, what="the others there again", within=LONG)
        assert unacked(broker, queue) == 1
        screen(other := consume(queue))
        second = other.next(LONG)
        assert {bytes(first.body), bytes(second.body)} < {b"1", b"2", b"3"}
        assert not consumer.next(NOT_YET)
        first.ack()
        second.ack()


def test_what_waits_behind_a_flood_has_its_turn_though_others_go_ahead(broker: Broker, queue: str) -> None:
    for body in (*[GARBAGE] * 25, b"other"):
        publish(broker, queue, body)
    for _ in range(3 * IN_A_ROW):
        publish(broker, first_queue(queue), b"fast")
    with consumers(broker) as consume:
        screen(consumer := consume(queue))
        taken = []
        for _ in range(2 * IN_A_ROW):
            message = consumer.next(LONG)
            taken.append(bytes(message.body))
            message.ack()
    assert b"other" in taken


# Keeping


def test_a_delivery_that_was_left_to_a_copy_is_neither_kept_nor_deleted_twice(
    sqs_server: SqsServer, proxy: SqsProxy
) -> None:
    url = url_of(sqs_server, proxy, "&hold=3s")
    with closing(open_broker(url, lease=LEASE)) as broker, request_queue(broker) as queue, consumers(broker) as consume:
        publish(broker, queue)
        message = consume(queue).next()
        broker.deliveries.keep_alive(message.properties)
        assert proxy.asked["ChangeMessageVisibility"] == 1
        sent = proxy.asked["SendMessage"]

        def is_left() -> bool:
            broker.deliveries.keep_alive(message.properties)
            return proxy.asked["SendMessage"] > sent

        wait_until(is_left, what="the hold over")
        kept = proxy.asked["ChangeMessageVisibility"]
        for _ in range(3):
            broker.deliveries.keep_alive(message.properties)
        assert (proxy.asked["SendMessage"] - sent, proxy.asked["ChangeMessageVisibility"] - kept) == (1, 0)
        copy = consume(queue).next()
        assert (copy.body, copy.headers, copy.content_type) == (message.body, message.headers, message.content_type)
        message.ack()
        broker.deliveries.defer(copy, queue=queue, delay=timedelta(seconds=1))
        again = consume(queue).next()
        again.ack()
        depth = broker.queues.depth(queue)
        assert (depth.ready, depth.unacked) == (0, 0)


def test_what_could_not_be_relayed_is_relayed_later(sqs_server: SqsServer, proxy: SqsProxy) -> None:
    url = url_of(sqs_server, proxy, "&hold=3s")
    with closing(open_broker(url, lease=LEASE)) as broker, request_queue(broker) as queue, consumers(broker) as consume:
        publish(broker, queue)
        message = consume(queue).next()
        proxy.fail("SendMessage", 503, "ServiceUnavailable", times=2)

        def is_told() -> bool:
            try:
                broker.deliveries.keep_alive(message.properties)
            except BrokerUnavailable:
                return True
            return False

        wait_until(is_told, what="the hold over, and nothing to leave it to")
        assert unacked(broker, queue) == 1
        broker.deliveries.keep_alive(message.properties)
        copy = consume(queue).next()
        copy.ack()


def test_a_delivery_that_sqs_extends_no_further_is_left_to_a_copy(broker: Broker, queue: str, proxy: SqsProxy) -> None:
    cap = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"
    publish(broker, queue)
    with consumers(broker) as consume:
        message = consume(queue).next()
        proxy.fail("ChangeMessageVisibility", 400, "InvalidParameterValue", text=cap)
        broker.deliveries.keep_alive(message.properties)
        copy = consume(queue).next()
        assert copy.body == BODY
        copy.ack()


def test_a_delivery_that_somebody_else_has_is_kept_no_longer(broker: Broker, queue: str, proxy: SqsProxy) -> None:
    publish(broker, queue)
    with consumers(broker) as consume:
        message = consume(queue).next()
        sent = proxy.asked["SendMessage"]
        proxy.fail("ChangeMessageVisibility", 400, "ReceiptHandleIsInvalid")
        for _ in range(3):
            broker.deliveries.keep_alive(message.properties)
        assert (proxy.asked["ChangeMessageVisibility"], proxy.asked["SendMessage"]) == (1, sent)
        message.ack()


# Queues


def test_a_prefix_stands_before_every_name_and_is_never_seen(sqs_server: SqsServer, proxy: SqsProxy) -> None:
    prefix = f"lab{uuid4().hex[:6]}-"
    url = url_of(sqs_server, proxy, f"&prefix={prefix}")
    with (
        closing(open_broker(url, lease=LEASE)) as broker,
        request_queue(broker) as queue,
        consumers(broker) as consume,
        closing(sqs_server.client()) as client,
    ):
        assert client.get_queue_url(QueueName=prefix + queue)["QueueUrl"]
        assert [record.queue for record in broker.queues.listed()] == [queue]
        publish(broker, queue)
        message = consume(queue).next()
        assert message.delivery_info["routing_key"] == queue
        broker.deliveries.dead_letter(message, queue=queue, reason="BAD_SPEC", detail="why")
        mail = receive(broker, dead_letter_queue(queue))
        assert mail
        assert mail.headers["jobqueue-detail"] == "why"


def test_a_queue_keeps_messages_for_two_weeks_and_says_whose_it_is(sqs_server: SqsServer, broker: Broker) -> None:
    queue = f"q-{uuid4().hex[:8]}"
    broker.queues.create(queue, owner="Ada <ada@example.org>; \N{SNOWMAN}")
    with closing(sqs_server.client()) as client:
        url = client.get_queue_url(QueueName=queue)["QueueUrl"]
        attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert attributes["MessageRetentionPeriod"] == str(14 * 24 * 3600)
        assert attributes["VisibilityTimeout"] == "20"
        tags = client.list_queue_tags(QueueUrl=url)["Tags"]
    assert tags == {"jobqueue:kind": "request", "jobqueue:owner": "Ada _ada@example.org__ _"}
    broker.queues.delete(queue)


def test_a_queue_that_was_deleted_a_moment_ago_is_told(broker: Broker, proxy: SqsProxy) -> None:
    proxy.fail("CreateQueue", 400, "QueueDeletedRecently")
    with pytest.raises(BrokerUnavailable, match="less than a minute ago"):
        broker.queues.create_plain(f"q-{uuid4().hex[:8]}")


# Sizes


@pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
def test_an_experiment_too_large_for_a_message_is_told_at_submit_and_leaves_nothing(
    sqs_server: SqsServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    project = f"p{uuid4().hex[:12]}"
    settings = Settings(broker_url=sqs_server.url, registry_url=redis_server.url, state_dir=tmp_path, project=project)
    ensure_laptop_keys(settings.keys_dir)
    large: dict[str, Any] = {
        "command": ["true", "x" * 60_000],
        "env": {"LONG": "x" * 60_000},
        "labels": {"long": "x" * 80_000},
    }
    with Client(settings) as client:
        with pytest.raises(InvalidSpec, match="262144 are allowed"):
            client.submit(image="any:1", **large)
        assert client.list(project=project) == []
        assert client._connections.broker.queues.depth(f"{project}_cpu").ready == 0


def test_a_dead_letter_that_leaves_no_room_for_its_reason_is_kept_without_it(
    sqs_server: SqsServer, broker: Broker, queue: str
) -> None:
    text = "x" * (256 * 1024)
    with consumers(broker) as consume, closing(sqs_server.client()) as client:
        client.send_message(QueueUrl=client.get_queue_url(QueueName=queue)["QueueUrl"], MessageBody=text)
        message = consume(queue).next()
        broker.deliveries.dead_letter(message, queue=queue, reason="BAD_ENVELOPE", detail="y" * 1000)
        mail = receive(broker, dead_letter_queue(queue))
        assert mail
        assert (mail.body, dict(mail.headers)) == (text.encode(), {})


# Events


def test_a_queue_is_no_mailbox_and_an_exchange_no_queue(broker: Broker, queue: str, redis_server: RedisServer) -> None:
    settings = broker.celery_settings()
    with kombu.Connection(settings["broker_url"], transport_options=settings["broker_transport_options"]) as connection:
        exchange = kombu.Exchange("told", type="topic", durable=False)
        connection.Producer().publish({"a": 1}, exchange=exchange, routing_key="x", declare=[exchange])
    assert broker.queues.depth(queue).ready == 0


@pytest.mark.parametrize(("key", "heard"), [("a.b", {"all", "as"}), ("c", {"all"})])
def test_whoever_listens_to_an_exchange_hears_what_its_key_lets_through(
    sqs_server: SqsServer, redis_server: RedisServer, key: str, heard: set[str]
) -> None:
    with closing(open_broker(sqs_server.url, lease=LEASE, events_url=redis_server.url)) as broker:
        settings = broker.celery_settings()
        options = {"transport_options": settings["broker_transport_options"]}
        exchange = kombu.Exchange(f"told-{uuid4().hex[:6]}", type="topic", durable=False)
        got: set[str] = set()
        with (
            kombu.Connection(settings["broker_url"], **options) as listening,
            kombu.Connection(settings["broker_url"], **options) as speaking,
        ):
            for name, pattern in {"all": "#", "as": "a.*"}.items():
                bound = kombu.Queue(f"{name}@host", exchange, routing_key=pattern, durable=False, auto_delete=True)
                listener = kombu.Consumer(
                    listening, [bound], no_ack=True, callbacks=[lambda _body, _message, name=name: got.add(name)]
                )
                listener.consume()
            speaking.Producer().publish({"a": 1}, exchange=exchange, routing_key=key, declare=[exchange])

            def has_heard() -> bool:
                with suppress(TimeoutError):
                    listening.drain_events(timeout=0.2)
                return got == heard

            wait_until(has_heard, what="what was said")
            with suppress(TimeoutError):
                listening.drain_events(timeout=0.3)
            assert got == heard
