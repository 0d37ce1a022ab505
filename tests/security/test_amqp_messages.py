"""What a stranger can write into the headers of a message at RabbitMQ, byte by byte."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from struct import pack
from typing import Any

import pytest
from amqp import Message
from kombu import Connection
from services.broker_client import patiently
from services.process import Process
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.site import Site, open_site
from services.waiting import wait_until

from jobqueue.application import CONTENT_TYPE
from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Mail
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

LONG = timedelta(seconds=60)
# As many as one frame of RabbitMQ's holds.
DEPTH = 15_000


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def sized(content: bytes) -> bytes:
    return pack(">I", len(content)) + content


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return short(name) + kind + value


def nested_tables() -> bytes:
    content = b""
    for _ in range(DEPTH):
        content = field(b"a", b"F", sized(content))
    return content


def nested_arrays() -> bytes:
    content = b""
    for _ in range(DEPTH):
        content = b"A" + sized(content)
    return short(b"a") + content


def with_headers(headers: bytes, content_type: bytes = CONTENT_TYPE.encode()) -> bytes:
    return pack(">H", 0x8000 | 0x2000) + short(content_type) + sized(headers)


PROPERTIES = {
    "tables in tables": with_headers(nested_tables()),
    "arrays in arrays": with_headers(nested_arrays()),
    "a date that no calendar has": with_headers(field(b"a", b"T", b"\x7f" + b"\xff" * 7)),
    "a date that no machine has": with_headers(field(b"a", b"T", b"\xff" * 8)),
    "a name that is no text": with_headers(field(b"\xff\xfe", b"t", b"\x01")),
    "a value that is no text": with_headers(field(b"a", b"S", sized(b"\xff\xfe"))),
    "a content type that is no text": with_headers(b"", content_type=b"\xff\xfe"),
    "a number out of range": with_headers(field(b"a", b"D", b"\xff\x7f\xff\xff\xff")),
    "10,000 fields": with_headers(b"".join(field(b"%05d" % number, b"t", b"\x01") for number in range(10_000))),
    "a frame full of fields": with_headers(
        b"".join(field(b"%05d" % number, b"t", b"\x01") for number in range(16_370))
    ),
    "bytes for an id": with_headers(field(b"id", b"x", sized(b"\xff\xfe"))),
    "a compression that is a table": with_headers(field(b"compression", b"F", sized(b""))),
    "a correlation that is no text": pack(">H", 0x0400) + short(b"\xff"),
}


class RawMessage(Message):
    """A message whose properties are bytes."""

    raw: bytes

    def _serialize_properties(self) -> bytes:
        return self.raw


@pytest.fixture
def site(rabbitmq_server: RabbitServer, redis_server: RedisServer, tmp_path: Any) -> Iterator[Site]:
    with open_site(tmp_path, broker=rabbitmq_server.url, registry=redis_server.url, runtime="process") as site:
        with closing(open_broker(site.settings.broker, lease=site.settings.lease)) as broker:
            patiently(lambda: broker.queues.create(site.queue))
        yield site


@pytest.fixture
def worker(site: Site) -> Iterator[Process]:
    with site.make_worker() as worker:
        yield worker


@pytest.mark.security_case("malformed messages: what the headers of RabbitMQ can hold")
def test_no_headers_end_a_worker(site: Site, worker: Process) -> None:
    """Headers that the AMQP library cannot read: nested 15,000 deep, dates and texts that are none, a frame full.

    Refused: each message is set aside as BAD_ENVELOPE with what can be read of it, and the worker goes on.
    Evidence: one dead letter for each, the worker's process is the same, and an experiment behind them succeeds.
    Red before: nine of these ended the worker or stayed with it, and came to the next one.
    """
    pid = worker.pid
    with Connection(site.settings.broker) as connection:
        channel: Any = connection.default_channel
        for number, properties in enumerate(PROPERTIES.values()):
            message = RawMessage(b"%d" % number)
            message.raw = properties
            channel.basic_publish(message, exchange="", routing_key=site.queue)
        channel.queue_declare(site.queue, passive=True)
    found = dead_letters(site, len(PROPERTIES))
    assert {mail.headers["jobqueue-reason"] for mail in found} == {"BAD_ENVELOPE"}
    assert sorted(mail.body for mail in found) == sorted(b"%d" % number for number in range(len(PROPERTIES)))
    assert site.client.submit(image="any:1", command=["true"]).result(timeout=60) == {"exit_code": 0}
    assert (worker.running, worker.pid) == (True, pid), worker.log_tail()


@pytest.mark.security_case("right key, wrong queue")
def test_a_routing_key_does_not_name_the_queue_that_a_message_was_found_in(site: Site, worker: Process) -> None:
    """A message for one queue, sent through an exchange into another one, under the first one's name.

    Refused: it is judged by the queue that it was taken from, and dropped as UNTRUSTED.
    Evidence: the worker's log of the refusal; the experiment stays queued, and nothing is set aside or reported.
    Red before: the sender's routing key was taken for the queue.
    """
    other = f"{site.settings.project}x_cpu"
    with closing(open_broker(site.settings.broker, lease=site.settings.lease)) as broker:
        patiently(lambda: broker.queues.create(other))
        with pytest.warns(JobqueueWarning):
            elsewhere = site.client.submit(image="any:1", command=["true"], queue=other)
        with Connection(site.settings.broker) as connection:
            channel: Any = connection.default_channel
            stolen = channel.basic_get(other, no_ack=True)
            channel.queue_bind(site.queue, "amq.topic", "#")
            for routing_key in (other, "\u00ff"):
                channel.basic_publish(
                    Message(stolen.body, **stolen.properties), exchange="amq.topic", routing_key=routing_key
                )
            wait_until(lambda: len(refusals(worker)) > 0, what="a refusal in the log", within=LONG)
            channel.queue_unbind(site.queue, "amq.topic", "#")
        assert site.client.submit(image="any:1", command=["true"]).result(timeout=60) == {"exit_code": 0}
        assert elsewhere.state == "QUEUED"
        assert patiently(lambda: broker.queues.depth(f"{site.queue}_dead")).ready == 0
        elsewhere.cancel()
        broker.queues.delete(other)


def refusals(worker: Process) -> list[str]:
    return [line for line in worker.log.read_text().splitlines() if "reason=UNTRUSTED" in line]


def dead_letters(site: Site, count: int) -> list[Mail]:
    dead, found = f"{site.queue}_dead", list[Mail]()
    with closing(open_broker(site.settings.broker, lease=site.settings.lease)) as broker:
        wait_until(lambda: patiently(lambda: broker.queues.depth(dead)).ready == count, what="set aside", within=LONG)
        while mail := broker.post.receive(dead, timeout=timedelta(milliseconds=200)):
            broker.post.acknowledge(mail)
            found.append(mail)
    return found
