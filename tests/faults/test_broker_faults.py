"""Brokers that stop, freeze and crash, consumers that are killed: nothing is lost, and who asks is told soon."""

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from services.broker_client import (
    BODY,
    COMES_BACK,
    LEASE,
    Consumer,
    consumers,
    patiently,
    plain_queue,
    publish,
    receive,
    request_queue,
    send,
)
from services.patience import wait_as_users_do
from services.process import Process
from services.redis import open_redis
from services.waiting import TOLD_WITHIN_SECONDS, waited_seconds

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.errors import BrokerUnavailable


@dataclass(frozen=True, kw_only=True)
class Server:
    """A broker's address and process."""

    url: str
    process: Process

    def crash(self) -> None:
        """End it as badly as it promises to bear: Redis answers up to two seconds before its file is written."""
        self.process.kill() if self.url.startswith("amqp") else self.process.stop()
        self.process.start()


@pytest.fixture(params=[pytest.param("redis_server", id="redis"), pytest.param("rabbitmq_server", id="rabbitmq")])
def server(request: pytest.FixtureRequest) -> Server:
    running = request.getfixturevalue(request.param)
    return Server(url=running.url, process=running.process)


@pytest.fixture
def broker(server: Server) -> Iterator[Broker]:
    opened = open_broker(server.url, lease=LEASE)
    yield opened
    opened.close()


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


def test_what_a_killed_consumer_held_comes_back(
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    script = (
        "import sys; sys.path[:0] = sys.argv[1].split(':');"
        "from services import broker_client as t; from jobqueue.brokers import open_broker;"
        "broker = open_broker(sys.argv[2], lease=t.LEASE);"
        "print(t.Consumer(broker, sys.argv[3]).next().body, flush=True);"
        "import signal; signal.pause()"
    )
    path = ":".join(sys.path)
    victim = subprocess.Popen([sys.executable, "-c", script, path, server.url, queue], stdout=subprocess.PIPE)
    assert victim.stdout
    with victim.stdout:
        assert victim.stdout.readline()
        victim.kill()
        victim.wait()

    message = consume(queue).next(COMES_BACK)
    assert message.body == BODY
    message.ack()


@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_a_broker_that_is_away_is_reported_soon_and_used_again_when_it_is_back(
    server: Server, broker: Broker, plain: str, fault: str
) -> None:
    send(broker, plain, b"before")
    with wait_as_users_do(), closing(open_broker(server.url, lease=LEASE)) as hasty:
        patiently(lambda: hasty.queues.exists(plain))
        operations: dict[str, Callable[[], object]] = {
            "exists": lambda: hasty.queues.exists(plain),
            "create": lambda: hasty.queues.create("never"),
            "depth": lambda: hasty.queues.depth(plain),
            "delete": lambda: hasty.queues.delete("never"),
            "send": lambda: send(hasty, plain, b"not sent"),
            "receive": lambda: receive(hasty, plain, timedelta()),
        }
        server.process.stop() if fault == "stopped" else server.process.pause()
        try:
            for name, operation in operations.items():
                started = waited_seconds()
                with pytest.raises(BrokerUnavailable):
                    operation()
                assert waited_seconds() - started < TOLD_WITHIN_SECONDS, name
        finally:
            server.process.start() if fault == "stopped" else server.process.resume()

        assert patiently(lambda: hasty.queues.exists(plain))
        assert patiently(lambda: send(hasty, plain, b"after"))
        bodies = []
        while b"after" not in bodies:
            mail = patiently(lambda: receive(hasty, plain))
            assert mail
            bodies.append(mail.body)
            patiently(partial(hasty.post.acknowledge, mail))
    assert bodies[0] == b"before"


def test_nothing_is_acknowledged_while_no_copy_can_be_made(
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    publish(broker, queue)
    message = consume(queue).next()
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


def test_a_queue_can_be_deleted_as_soon_as_the_broker_answers(
    server: Server, broker: Broker, queue: str, consume: Callable[[str], Consumer]
) -> None:
    server.process.restart()
    broker.queues.delete(queue)
    broker.queues.create(queue)
    publish(broker, queue)
    consumer = consume(queue)
    broker.deliveries.defer(consumer.next(), queue=queue, delay=timedelta(milliseconds=500))
    message = consumer.next(COMES_BACK)
    assert message.body == BODY
    message.ack()


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


def test_no_error_names_the_password(server: Server) -> None:
    scheme, _, rest = server.url.partition("://")
    address = rest.rpartition("@")[2]
    intruder = open_broker(f"{scheme}://someone:hunter2@{address}", lease=LEASE)
    with pytest.raises(BrokerUnavailable) as refused:
        intruder.queues.exists("any")
    assert "hunter2" not in f"{refused.value!r} {refused.value} {intruder!r}"
    assert refused.value.__cause__ is None
    intruder.close()
