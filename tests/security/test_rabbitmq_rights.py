"""Users of RabbitMQ with the rights of `examples/rabbitmq-definitions.json`: each can do its work, and not more."""

import json
import secrets
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from services.broker_client import patiently
from services.flower import open_flower, read_page
from services.place import LONG, Place
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.site import open_site
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.routing import dead_letter_queue, reporting_queue

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

EXAMPLE = Path(__file__).parents[2] / "examples" / "rabbitmq-definitions.json"


@dataclass(frozen=True, kw_only=True)
class Rights:
    """A virtual host with the users of the example.

    Attributes:
        urls: The broker's address of each user, by the name in the example.
    """

    server: RabbitServer
    urls: dict[str, str]


@pytest.fixture
def rights(rabbitmq_server: RabbitServer) -> Iterator[Rights]:
    own = f"acl-{secrets.token_hex(4)}"
    text = EXAMPLE.read_text().replace('"CHANGE-ME"', '"password"')
    definitions = json.loads(text)
    names = [user["name"] for user in definitions["users"]]
    for vhost in definitions["vhosts"]:
        vhost["name"] = own
    for user in definitions["users"]:
        user["name"] = f"{own}-{user['name']}"
    for permission in definitions["permissions"]:
        permission |= {"vhost": own, "user": f"{own}-{permission['user']}"}
    manage(rabbitmq_server, "POST", "definitions", definitions)
    at = f"127.0.0.1:{rabbitmq_server.port}/{own}"
    yield Rights(server=rabbitmq_server, urls={name: f"amqp://{own}-{name}:password@{at}" for name in names})
    manage(rabbitmq_server, "DELETE", f"vhosts/{own}")
    for name in names:
        manage(rabbitmq_server, "DELETE", f"users/{own}-{name}")


def manage(server: RabbitServer, method: str, path: str, content: Any = None) -> None:
    import base64

    url = f"http://127.0.0.1:{server.management_port}/api/{quote(path)}"
    request = urllib.request.Request(url, method=method, data=json.dumps(content).encode() if content else None)
    request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request, timeout=30).close()


def attempt(url: str, act: Callable[[Any], object]) -> str:
    """Do something on a channel of a user, and return how the broker refused it; empty where it did not."""
    from amqp.exceptions import AMQPError
    from kombu import Connection

    with Connection(url) as connection:
        try:
            act(connection.default_channel)
        except AMQPError as error:
            return str(getattr(error, "reply_text", error)).split()[0]
    return ""


def steals(queue: str) -> dict[str, Callable[[Any], object]]:
    """Return what somebody tries who has a producer's password."""
    return {
        "get": lambda channel: channel.basic_get(queue),
        "consume": lambda channel: channel.basic_consume(queue, callback=print),
        "purge": lambda channel: channel.queue_purge(queue),
        "delete": lambda channel: channel.queue_delete(queue),
        "declare": lambda channel: channel.queue_declare("lab_new", durable=True),
        "declare an exchange": lambda channel: channel.exchange_declare("new", "fanout"),
        "bind": lambda channel: channel.queue_bind(queue, "amq.fanout", ""),
        "read the dead letters": lambda channel: channel.basic_get(dead_letter_queue(queue)),
        "tell all workers something": lambda channel: publish(channel, exchange="celery.pidbox"),
        "tell what workers tell": lambda channel: publish(channel, exchange="celeryev"),
    }


def publish(channel: Any, content: object = None, *, exchange: str = "", queue: str = "") -> None:
    from amqp import Message

    message = Message(json.dumps(content), content_type="application/json", content_encoding="utf-8")
    channel.confirm_select()
    channel.basic_publish_confirm(message, exchange=exchange, routing_key=queue)


def stop_worker(channel: Any) -> None:
    order = {"method": "shutdown", "arguments": dict[str, str](), "destination": None}
    publish(channel, order, queue="cpu.lab@test.celery.pidbox")


@pytest.mark.security_case("Stolen broker password of a producer")
def test_a_producers_password_publishes_and_does_nothing_else(rights: Rights) -> None:
    """Somebody with a producer's password reads, consumes, purges, deletes, declares, binds, tells workers to stop.

    Refused: by RabbitMQ, each with ACCESS_REFUSED; the queue and what lies in it stay.
    Evidence: a real broker with the users of `examples/rabbitmq-definitions.json`, and the queue's depth afterwards.
    """
    operator = open_broker(rights.urls["operator"], lease=LONG)
    try:
        patiently(partial(operator.queues.create, "lab_cpu"))
        make_exchanges(rights.urls["operator"])
        assert attempt(rights.urls["producer"], lambda channel: publish(channel, queue="lab_cpu")) == ""
        tried = {name: attempt(rights.urls["producer"], act) for name, act in steals("lab_cpu").items()}
        assert tried == dict.fromkeys(tried, "ACCESS_REFUSED")
        assert operator.queues.depth("lab_cpu").ready == 1
    finally:
        operator.close()


@pytest.mark.security_case("Stolen broker password of a node")
def test_a_nodes_password_changes_no_queue(rights: Rights) -> None:
    """Somebody has a node's password: he purges, deletes and declares queues, and tells other workers to stop.

    Refused: by RabbitMQ, each with ACCESS_REFUSED.
    Evidence: a real broker with the users of `examples/rabbitmq-definitions.json`.
    """
    operator = open_broker(rights.urls["operator"], lease=LONG)
    try:
        patiently(partial(operator.queues.create, "lab_cpu"))
        make_exchanges(rights.urls["operator"])
        refused = {
            name: act
            for name, act in steals("lab_cpu").items()
            if name not in ("get", "consume", "purge", "tell what workers tell")
        }
        tried = {name: attempt(rights.urls["node"], act) for name, act in refused.items()}
        assert tried == dict.fromkeys(tried, "ACCESS_REFUSED")
        for queue in ("other_cpu", reporting_queue("lab_cpu")):
            patiently(partial(operator.queues.create_plain, queue))
            assert attempt(rights.urls["node"], methodcaller("basic_get", queue)) == "ACCESS_REFUSED"
    finally:
        operator.close()


def make_exchanges(url: str) -> None:
    """Declare what Celery's remote control and events go through."""
    from kombu import Connection

    with Connection(url) as connection:
        channel: Any = connection.default_channel
        channel.exchange_declare("celery.pidbox", "fanout", durable=False, auto_delete=False)
        channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)


@pytest.mark.security_case("Stolen broker password of a dashboard")
def test_a_dashboards_password_sends_nothing(rights: Rights) -> None:
    """Somebody has Flower's broker password: he submits, reads queues, tells workers to stop, forges their events.

    Refused: by RabbitMQ, each with ACCESS_REFUSED: this user only listens.
    Evidence: a real broker with the users of `examples/rabbitmq-definitions.json`, of which this one hears events.
    """
    operator = open_broker(rights.urls["operator"], lease=LONG)
    try:
        patiently(partial(operator.queues.create, "lab_cpu"))
        make_exchanges(rights.urls["operator"])
        tries = {**steals("lab_cpu"), "submit": lambda channel: publish(channel, queue="lab_cpu")}
        tried = {name: attempt(rights.urls["flower"], act) for name, act in tries.items()}
        assert tried == dict.fromkeys(tried, "ACCESS_REFUSED")
    finally:
        operator.close()


@pytest.mark.security_case("Stolen broker password and remote control")
def test_an_experiment_runs_with_these_rights_and_nobody_stops_the_worker(
    rights: Rights, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Somebody with a producer's password lays an order to stop straight into the queue of a worker's remote control.

    Refused: with JOBQUEUE_REMOTE_CONTROL=false there is no such queue; the worker goes on.
    Evidence: a worker, a producer and a real Flower with the users of the example, before and after the order.
    Red before: there was no such setting; every order reached the worker, for RabbitMQ cannot refuse it.
    """
    operator = open_broker(rights.urls["operator"], lease=LONG)
    patiently(partial(operator.queues.create, "lab_cpu"))
    patiently(partial(operator.queues.create_plain, reporting_queue("lab_cpu")))
    operator.close()
    environment = {"JOBQUEUE_BROKER_URL": rights.urls["node"], "JOBQUEUE_REMOTE_CONTROL": "false"}
    site = open_site(
        tmp_path, broker=rights.urls["producer"], registry=redis_server.url, runtime="process", project="lab"
    )
    with site as opened:
        place = Place(site=opened, engine=None)
        with place.make_worker(environment=environment) as worker:
            for _ in range(2):
                experiment = place.submit("echo hello")
                assert experiment.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
                assert place.take_reports(experiment)
                assert attempt(rights.urls["producer"], stop_worker) == ""
            assert worker.running
            with open_flower(tmp_path, broker=rights.urls["flower"], project="lab") as address:
                seen = "cpu.lab@test"
                wait_until(lambda: seen in read_page(f"{address}/workers"), what="Flower's worker", within=LONG)
