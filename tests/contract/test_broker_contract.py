"""What every broker does: the same assertions over memory, Redis and RabbitMQ."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
import pytest
from services.process import Process
from services.redis import open_redis
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker, Mail
from jobqueue.errors import BrokerUnavailable, InvalidSetting, NoSuchQueue
from jobqueue.routing import dead_letter_queue

LEASE = timedelta(seconds=1)
# What a silent worker's delivery takes to come back at Redis: the lease, its margin, and the sweep; on a busy machine.
COMES_BACK = timedelta(seconds=20)
SOON = timedelta(seconds=10)
NOT_YET = timedelta(milliseconds=300)
TOLD_WITHIN_SECONDS = 4.0
SERVERS = [pytest.param("redis_server", id="redis"), pytest.param("rabbitmq_server", id="rabbitmq")]
BODY = b"\x00\xff sealed \x81"
HEADERS = {"lang": "py", "id": "exp-1", "retries": 0, "timelimit": [None, None], "root": None}


class Server:
    """A broker's process and its URL; memory has no process."""

    def __init__(self, url: str, process: Process | None) -> None:
        self.url = url
        self.process = process

    def open(self) -> Broker:
        return open_broker(self.url, lease=LEASE)

    def crash(self) -> None:
        """End it as badly as it promises to bear: Redis answers up to two seconds before its file is written."""
        assert self.process
        self.process.kill() if self.url.startswith("amqp") else self.process.stop()
        self.process.start()


class Consumer:
    """What a worker is to a broker: a kombu consumer with the settings that Celery gets, one message at a time."""

    def __init__(self, broker: Broker, queue: str) -> None:
        settings = broker.celery_settings()
        self.connection = kombu.Connection(
            settings["broker_url"], transport_options=settings["broker_transport_options"], heartbeat=0
        )
        self.received: list[Any] = []
        self.channel = self.connection.channel()
        self.consumer = kombu.Consumer(
            self.channel,
            [broker.request_queue(queue)],
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


@pytest.fixture(params=[pytest.param("memory", id="memory"), *SERVERS])
def server(request: pytest.FixtureRequest) -> Server:
    if request.param == "memory":
        return Server("memory://", None)
    running = request.getfixturevalue(request.param)
    return Server(running.url, running.process)


@pytest.fixture
def broker(server: Server) -> Iterator[Broker]:
    opened = server.open()
    yield opened
    opened.close()


@pytest.fixture
def plain(broker: Broker) -> Iterator[str]:
    name = f"plain-{uuid4().hex[:8]}"
    broker.queues.create_plain(name)
    yield name
    broker.queues.delete(name)


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    name = f"work-{uuid4().hex[:8]}"
    broker.queues.create(name)
    yield name
    broker.queues.delete(name)


@pytest.fixture
def consume(broker: Broker) -> Iterator[Callable[[str], Consumer]]:
    opened: list[Consumer] = []

    def start(queue: str) -> Consumer:
        opened.append(Consumer(broker, queue))
        return opened[-1]

    yield start
    for consumer in opened:
        consumer.close()


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
    assert 0.25 <= time.monotonic() - started < 3


def test_mail_that_was_not_acknowledged_comes_back_when_its_receiver_is_gone(
    server: Server, broker: Broker, plain: str
) -> None:
    for body in (b"one", b"two", b"three"):
        send(broker, plain, body)
    receiver = server.open()
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
    assert broker.queues.depth(queue).ready == 1

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
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    holder, rival = consume(queue), None
    message = holder.next()
    rival = consume(queue)
    kept_until = time.monotonic() + 9  # seconds; past the lease, Redis' margin and a sweep
    while time.monotonic() < kept_until:
        broker.deliveries.keep_alive(message.properties)
        assert rival.next(timedelta(milliseconds=500)) is None
    message.ack()
    assert broker.queues.depth(queue).ready == 0


# Faults of real servers


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_what_a_killed_consumer_held_comes_back(
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    script = (
        "import sys; sys.path[:0] = sys.argv[1].split(':');"
        "import test_broker_contract as t;"
        "broker = t.open_broker(sys.argv[2], lease=t.LEASE);"
        "print(t.Consumer(broker, sys.argv[3]).next().body, flush=True);"
        "import signal; signal.pause()"
    )
    path = ":".join([str(Path(__file__).parent), *sys.path])
    victim = subprocess.Popen([sys.executable, "-c", script, path, server.url, queue], stdout=subprocess.PIPE)
    assert victim.stdout
    with victim.stdout:
        assert victim.stdout.readline()
        victim.kill()
        victim.wait()

    message = consume(queue).next(COMES_BACK)
    assert message.body == BODY
    message.ack()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_a_broker_that_is_away_is_reported_soon_and_used_again_when_it_is_back(
    server: Server, broker: Broker, plain: str, fault: str
) -> None:
    send(broker, plain, b"before")
    assert server.process
    operations: dict[str, Callable[[], object]] = {
        "exists": lambda: broker.queues.exists(plain),
        "create": lambda: broker.queues.create("never"),
        "depth": lambda: broker.queues.depth(plain),
        "delete": lambda: broker.queues.delete("never"),
        "send": lambda: send(broker, plain, b"not sent"),
        "receive": lambda: receive(broker, plain, timedelta()),
    }
    server.process.stop() if fault == "stopped" else server.process.pause()
    try:
        for name, operation in operations.items():
            started = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                operation()
            assert time.monotonic() - started < TOLD_WITHIN_SECONDS, name
    finally:
        server.process.start() if fault == "stopped" else server.process.resume()

    assert broker.queues.exists(plain)
    assert send(broker, plain, b"after")
    bodies = []
    while b"after" not in bodies:
        mail = receive(broker, plain)
        assert mail
        bodies.append(mail.body)
        broker.post.acknowledge(mail)
    assert bodies[0] == b"before"


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_nothing_is_acknowledged_while_no_copy_can_be_made(
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    message = consume(queue).next()
    assert server.process
    server.process.stop()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            broker.deliveries.defer(message, queue=queue, delay=timedelta(seconds=1))
        with pytest.raises(BrokerUnavailable):
            broker.deliveries.dead_letter(message, queue=queue, reason="BAD_SPEC", detail="")
    assert not message.acknowledged
    server.process.start()

    again = consume(queue).next(COMES_BACK)
    assert again.body == BODY
    again.ack()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_deferred_deliveries_survive_a_crash_of_the_broker(
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    bodies = {str(number).encode() for number in range(40)}
    for body in bodies:
        publish(broker, queue, body)
    consumer = consume(queue)
    for _ in bodies:
        broker.deliveries.defer(consumer.next(), queue=queue, delay=timedelta(seconds=2))
    server.crash()

    consumer = consume(queue)
    back = set()
    while back != bodies:
        message = consumer.next(COMES_BACK)
        assert message, f"{len(bodies - back)} lost"
        back.add(message.body)
        message.ack()

    # And what was made before the kill goes on working after it.
    publish(broker, queue)
    broker.deliveries.defer(consumer.next(), queue=queue, delay=timedelta(seconds=1))
    message = consumer.next(COMES_BACK)
    assert message.body == BODY
    message.ack()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_a_forked_child_and_its_parent_do_not_disturb_each_other(broker: Broker, plain: str) -> None:
    send(broker, plain, b"before")
    held = receive(broker, plain)
    assert held
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        children = [_fork(lambda: [send(broker, plain, b"child") for _ in range(20)]) for _ in range(3)]
    for _ in range(20):
        assert send(broker, plain, b"parent")
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert broker.queues.depth(plain).ready == 80
    broker.post.acknowledge(held)


def _fork(work: Callable[[], list[bool]]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if all(work()) else 2
        finally:
            os._exit(code)
    return child


def test_a_redis_socket_is_a_broker_like_its_port(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, open_redis(tmp_path, options=["--unixsocket", f"{folder}/s"]):
        broker = open_broker(f"redis+socket://{folder}/s?virtual_host=1", lease=LEASE)
        broker.queues.create("work")
        publish(broker, "work")
        assert broker.queues.depth("work").ready == 1
        consumer = Consumer(broker, "work")
        message = consumer.next()
        broker.deliveries.defer(message, queue="work", delay=timedelta(milliseconds=500))
        message = consumer.next(COMES_BACK)
        assert message.body == BODY
        message.ack()
        consumer.close()
        broker.close()


@pytest.mark.parametrize("url", ["sqs://key:hunter2@eu-west-1", "http://u:hunter2@host", "hunter2@host"])
def test_a_url_without_a_broker_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        open_broker(url, lease=LEASE)
    assert "hunter2" not in str(refused.value)
    assert "redis" in str(refused.value).lower()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_no_error_names_the_password(server: Server) -> None:
    scheme, _, rest = server.url.partition("://")
    address = rest.rpartition("@")[2]
    intruder = open_broker(f"{scheme}://someone:hunter2@{address}", lease=LEASE)
    with pytest.raises(BrokerUnavailable) as refused:
        intruder.queues.exists("any")
    assert "hunter2" not in f"{refused.value!r} {refused.value} {intruder!r}"
    assert refused.value.__cause__ is None
    intruder.close()
