"""What every broker does: the same assertions over memory, Redis, RabbitMQ and SQS."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from services.broker_client import (
    BODY,
    COMES_BACK,
    HEADERS,
    LEASE,
    NOT_YET,
    SOON,
    Consumer,
    consumers,
    plain_queue,
    publish,
    receive,
    request_queue,
    send,
)
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker, Mail, QueueRecord
from jobqueue.errors import InvalidSetting, NoSuchQueue
from jobqueue.routing import dead_letter_queue, first_queue, served_queue


@pytest.fixture(
    params=[
        pytest.param("", id="memory"),
        pytest.param("redis_server", id="redis"),
        pytest.param("rabbitmq_server", id="rabbitmq"),
        pytest.param("sqs_server", id="sqs"),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param).url if request.param else "memory://"


@pytest.fixture(scope="module")
def brokers() -> Iterator[dict[str, Broker]]:
    """One broker object for each server, as a worker keeps one."""
    opened: dict[str, Broker] = {}
    yield opened
    for broker in opened.values():
        broker.close()


@pytest.fixture
def broker(url: str, brokers: dict[str, Broker]) -> Broker:
    if url not in brokers:
        brokers[url] = open_broker(url, lease=LEASE)
    return brokers[url]


@pytest.fixture
def plain(broker: Broker) -> Iterator[str]:
    with plain_queue(broker) as name:
        yield name


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    with request_queue(broker) as name:
        yield name


@pytest.fixture
def consume(broker: Broker) -> Iterator[Callable[[str], Consumer]]:
    with consumers(broker) as start:
        yield start


# Queues


def test_a_queue_exists_from_its_creation_to_its_deletion(broker: Broker) -> None:
    name = f"q-{uuid4().hex[:8]}"
    assert not broker.queues.exists(name)

    broker.queues.create(name)
    broker.queues.create(name)
    assert broker.queues.exists(name)
    assert broker.queues.exists(dead_letter_queue(name))

    broker.queues.delete(name)
    broker.queues.delete(name)
    assert not broker.queues.exists(name)
    assert not broker.queues.exists(dead_letter_queue(name))


def test_a_queue_comes_and_goes_with_the_one_that_is_served_before_it(broker: Broker) -> None:
    name = f"q-{uuid4().hex[:8]}"
    broker.queues.create(name)
    publish(broker, first_queue(name))
    assert broker.queues.depth(name).ready == 1
    broker.queues.delete(name)
    assert not broker.queues.exists(first_queue(name))
    broker.queues.create(name)
    assert broker.queues.depth(name).ready == 0
    broker.queues.delete(name)


def test_what_lies_in_the_queue_that_is_served_first_goes_ahead_of_all_that_waits(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    for number in range(5):
        publish(broker, queue, body=b"%d" % number)
    publish(broker, first_queue(queue), body=b"first")
    assert bytes(consume(queue).next().body) == b"first"


def test_what_goes_ahead_comes_back_to_where_it_was(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue, body=b"other")
    publish(broker, first_queue(queue), body=b"first")
    consumer = consume(queue)
    message = consumer.next()
    broker.deliveries.defer(message, queue=queue, delay=timedelta(seconds=0.2))
    bodies = {bytes(message.body)}
    other = consumer.next()
    bodies.add(bytes(other.body))
    other.ack()
    again = consumer.next(COMES_BACK)
    bodies.add(bytes(again.body))
    again.ack()
    assert bodies == {b"first", b"other"}
    assert served_queue(again.delivery_info["routing_key"]) == queue


def test_creating_a_queue_again_keeps_what_lies_in_it(broker: Broker, queue: str) -> None:
    publish(broker, queue)
    broker.queues.create(queue)
    broker.queues.create_plain(queue)
    assert broker.queues.depth(queue).ready == 1


def test_a_plain_queue_has_no_companions(broker: Broker, plain: str) -> None:
    assert broker.queues.exists(plain)
    assert not broker.queues.exists(dead_letter_queue(plain))


def test_the_depth_of_a_missing_queue_is_an_error(broker: Broker) -> None:
    with pytest.raises(NoSuchQueue, match="missing-queue"):
        broker.queues.depth("missing-queue")


def test_a_deleted_queue_comes_back_empty(broker: Broker, queue: str) -> None:
    publish(broker, queue)
    broker.queues.delete(queue)
    broker.queues.create(queue)
    assert broker.queues.depth(queue).ready == 0


def test_the_queues_that_were_created_are_listed_with_what_was_noted(broker: Broker) -> None:
    names = sorted(f"{letter}-{uuid4().hex[:8]}" for letter in "bac")
    expires_at = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    broker.queues.create(names[0], expires_at=expires_at, owner="session 7", retention=timedelta(days=14))
    for name in names[1:]:
        broker.queues.create(name)

    def listed() -> list[QueueRecord]:
        return [record for record in broker.queues.listed() if record.queue in names]

    noted = QueueRecord(queue=names[0], expires_at=expires_at, owner="session 7", retention=timedelta(days=14))
    assert listed() == [noted, *(QueueRecord(queue=name) for name in names[1:])]
    for name in names[1:]:
        broker.queues.delete(name)
    assert listed() == [noted]
    broker.queues.create(names[0], owner="everybody")
    assert listed() == [QueueRecord(queue=names[0], owner="everybody")]
    broker.queues.delete(names[0])
    assert listed() == []


def test_plain_queues_and_companions_are_not_listed(broker: Broker, plain: str, queue: str) -> None:
    listed = {record.queue for record in broker.queues.listed()}
    assert queue in listed
    assert not listed & {plain, dead_letter_queue(queue)}


def test_queues_created_at_the_same_time_are_all_listed(broker: Broker) -> None:
    names = {f"q-{uuid4().hex[:8]}" for _ in range(6)}
    threads = [threading.Thread(target=broker.queues.create, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names <= {record.queue for record in broker.queues.listed()}
    for name in names:
        broker.queues.delete(name)


# Post


def test_mail_arrives_in_order_with_its_headers(broker: Broker, plain: str) -> None:
    for body in (b"one", BODY, b""):
        assert send(broker, plain, body)
    received = [receive(broker, plain) for _ in range(3)]

    assert [mail.body for mail in received if mail] == [b"one", BODY, b""]
    assert all(mail and mail.content_type == "application/x-test" and mail.headers == {"n": "1"} for mail in received)
    for mail in received:
        assert mail
        broker.post.acknowledge(mail)
    assert receive(broker, plain, timedelta()) is None
    assert broker.queues.depth(plain).ready == 0


def test_sending_to_a_missing_queue_says_so_and_creates_nothing(broker: Broker, plain: str) -> None:
    assert not send(broker, "missing-queue", b"lost")
    assert not broker.queues.exists("missing-queue")
    # What was said about the one before must not be taken for an answer about this one.
    assert send(broker, plain, b"kept")
    assert not send(broker, "missing-queue", b"lost")
    assert send(broker, plain, b"kept")
    assert broker.queues.depth(plain).ready == 2


def test_receiving_from_a_missing_queue_is_an_error(broker: Broker) -> None:
    with pytest.raises(NoSuchQueue, match="missing-queue"):
        receive(broker, "missing-queue", timedelta())
    assert not broker.queues.exists("missing-queue")


def test_an_empty_queue_is_waited_for_no_longer_than_told(broker: Broker, plain: str) -> None:
    started = time.monotonic()
    assert receive(broker, plain, timedelta(milliseconds=300)) is None
    assert 0.25 <= time.monotonic() - started < 15


def test_mail_that_was_not_acknowledged_comes_back_when_its_receiver_is_gone(
    url: str, broker: Broker, plain: str
) -> None:
    for body in (b"one", b"two", b"three"):
        send(broker, plain, body)
    receiver = open_broker(url, lease=LEASE)
    first, second = receive(receiver, plain), receive(receiver, plain)
    assert first
    assert second
    receiver.post.acknowledge(first)
    receiver.close()

    bodies: set[bytes] = set()

    def collect() -> bool:
        mail = receive(broker, plain, NOT_YET)
        if mail:
            bodies.add(mail.body)
            broker.post.acknowledge(mail)
        return bodies == {b"two", b"three"}

    wait_until(collect, what="unacknowledged mail back", within=COMES_BACK)
    assert receive(broker, plain, NOT_YET) is None


def test_mail_that_is_given_back_is_received_again_at_once(broker: Broker, plain: str) -> None:
    for body in (b"one", b"two", b"three"):
        send(broker, plain, body)
    taken = [mail for mail in (receive(broker, plain) for _ in range(3)) if mail]
    broker.post.acknowledge(taken[1])
    for mail in (taken[2], taken[0]):
        broker.post.give_back(mail)
    again = [mail for mail in (receive(broker, plain) for _ in range(2)) if mail]
    assert {mail.body for mail in again} == {b"one", b"three"}
    assert all(mail.headers == {"n": "1"} for mail in again)
    for mail in again:
        broker.post.acknowledge(mail)
    assert receive(broker, plain, timedelta()) is None


def test_mail_of_another_broker_is_refused(broker: Broker) -> None:
    mail = Mail(body=b"", content_type="", handle="another's")
    for end in (broker.post.acknowledge, broker.post.give_back):
        with pytest.raises(TypeError, match="another broker"):
            end(mail)


def test_threads_share_one_broker(broker: Broker, plain: str) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                assert send(broker, plain, f"{number}-{turn}".encode())
        except BaseException as error:  # noqa: BLE001  # the test reports it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bodies = set()
    while mail := receive(broker, plain, NOT_YET):
        bodies.add(mail.body)
        broker.post.acknowledge(mail)
    assert not failures
    assert bodies == {f"{number}-{turn}".encode() for number in range(8) for turn in range(10)}


# Deliveries


def test_a_request_reaches_a_consumer_without_anything_being_declared(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    message = consume(queue).next()
    assert message.body == BODY
    assert message.headers["timelimit"] == [None, None]
    message.ack()
    assert broker.queues.depth(queue).ready == 0


def test_a_deferred_delivery_comes_back_after_its_delay_and_not_before(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    consumer = consume(queue)
    message = consumer.next()
    started = time.monotonic()
    broker.deliveries.defer(message, queue=queue, delay=timedelta(seconds=2))
    # SQS cannot tell what was put off from what somebody works on.
    depth = broker.queues.depth(queue)
    assert depth.ready + (depth.unacked or 0) == 1

    again = consumer.next(COMES_BACK)
    assert time.monotonic() - started >= 1.9
    assert again.body == BODY
    assert {key: again.headers.get(key) for key in HEADERS} == HEADERS
    assert again.content_type == "application/vnd.test"
    assert again.properties["correlation_id"] == "exp-1"
    again.ack()
    assert consumer.next(NOT_YET) is None
    assert broker.queues.depth(queue).ready == 0


def test_a_deferred_delivery_frees_its_place_at_the_consumer(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue, b"first")
    publish(broker, queue, b"second")
    consumer = consume(queue)
    broker.deliveries.defer(consumer.next(), queue=queue, delay=timedelta(seconds=3))
    second = consumer.next()
    assert second.body == b"second"
    second.ack()
    first = consumer.next(COMES_BACK)
    assert first.body == b"first"
    first.ack()


def test_a_delivery_can_be_deferred_again_and_again(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    consumer = consume(queue)
    for _ in range(4):
        broker.deliveries.defer(consumer.next(COMES_BACK), queue=queue, delay=timedelta(milliseconds=200))
    message = consumer.next(COMES_BACK)
    assert message.body == BODY
    assert not [
        name for name in message.headers if name.startswith("x-death") and message.headers[name][0]["count"] > 1
    ]
    message.ack()


def test_a_deferred_delivery_outlives_its_consumer(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    first = consume(queue)
    broker.deliveries.defer(first.next(), queue=queue, delay=timedelta(seconds=1))
    first.close()
    message = consume(queue).next(COMES_BACK)
    assert message.body == BODY
    message.ack()
    assert broker.queues.depth(queue).ready == 0


def test_a_dead_letter_carries_its_reason_and_its_body(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue, headers={**HEADERS, "jobqueue-reason": "FORGED", "jobqueue-token": "1", "x-death": "stale"})
    consumer = consume(queue)
    detail = "not an envelope: \udcff " + "x" * 5000
    broker.deliveries.dead_letter(consumer.next(), queue=queue, reason="BAD_ENVELOPE", detail=detail)

    mail = receive(broker, dead_letter_queue(queue))
    assert mail
    assert mail.body == BODY
    assert mail.content_type == "application/vnd.test"
    assert mail.headers["jobqueue-reason"] == "BAD_ENVELOPE"
    assert mail.headers["jobqueue-detail"].startswith("not an envelope: ")
    assert len(mail.headers["jobqueue-detail"]) == 1000
    assert mail.headers["id"] == "exp-1"
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(mail.headers["jobqueue-dead-at"]) < SOON
    assert "jobqueue-token" not in mail.headers
    assert "x-death" not in mail.headers
    broker.post.acknowledge(mail)
    assert consumer.next(NOT_YET) is None
    assert broker.queues.depth(queue).ready == 0


@pytest.mark.parametrize("body", [b"", b"null", b"\xff\xfe", b'{"foo": 1}'])
def test_any_body_can_be_set_aside(broker: Broker, queue: str, consume: Callable[[str], Consumer], body: bytes) -> None:
    publish(broker, queue, body, headers={})
    broker.deliveries.dead_letter(consume(queue).next(), queue=queue, reason="BAD_ENVELOPE", detail="")
    mail = receive(broker, dead_letter_queue(queue))
    assert mail
    assert mail.body == body


def test_a_body_that_is_not_compressed_as_it_says_can_be_set_aside(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue, headers={"compression": "application/x-gzip"})
    broker.deliveries.dead_letter(consume(queue).next(), queue=queue, reason="BAD_ENVELOPE", detail="")
    mail = receive(broker, dead_letter_queue(queue))
    assert mail
    assert mail.body == BODY
    assert mail.headers["compression"] == "application/x-gzip"


def test_without_a_companion_queue_nothing_is_acknowledged(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    message = consume(queue).next()
    broker.queues.delete(dead_letter_queue(queue))
    with pytest.raises(NoSuchQueue, match="dead"):
        broker.deliveries.dead_letter(message, queue=queue, reason="BAD_SPEC", detail="")
    assert not message.acknowledged
    message.ack()


def test_a_delivery_that_is_kept_alive_stays_with_its_consumer(
    broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    holder, rival = consume(queue), None
    message = holder.next()
    rival = consume(queue)
    kept_until = time.monotonic() + 8  # seconds; past the lease, Redis' margin and a sweep
    while time.monotonic() < kept_until:
        broker.deliveries.keep_alive(message.properties)
        assert rival.next(timedelta(milliseconds=500)) is None
    message.ack()
    assert broker.queues.depth(queue).ready == 0


@pytest.mark.parametrize("address", ["amq://key:hunter2@host", "http://u:hunter2@host", "hunter2@host"])
def test_a_url_without_a_broker_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        open_broker(address, lease=LEASE)
    assert "hunter2" not in str(refused.value)
    assert "redis" in str(refused.value).lower()


@pytest.mark.parametrize(
    "address", ["amqp://u:hunter2/x@host:5672", "redis://[::1", "redis://host:port", "amqp://a;amqp://u:hunter2@b:c"]
)
def test_a_url_that_cannot_be_taken_apart_is_refused_before_it_is_used(address: str) -> None:
    with pytest.raises(InvalidSetting, match="cannot be used") as refused:
        open_broker(address, lease=LEASE)
    assert "hunter2" not in str(refused.value)
