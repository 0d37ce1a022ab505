"""A worker that no message can kill: malformed, foreign, untrusted."""

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from services.process import Process
from services.site import Site, open_site
from services.waiting import wait_until

from jobqueue.application import CONTENT_TYPE, TASK
from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.config import Settings
from jobqueue.ids import make_experiment_id
from jobqueue.keys import ensure_laptop_keys
from producers.client import Client

LONG = timedelta(seconds=40)


def task_headers(**changes: object) -> dict[str, Any]:
    headers = {
        "lang": "py",
        "task": TASK,
        "id": make_experiment_id(),
        "root_id": None,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "timelimit": [None, None],
        "eta": None,
        "expires": None,
        "argsrepr": "",
        "kwargsrepr": "",
        "origin": "",
    }
    return {**headers, **changes}


EMPTY_TASK = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
WITHOUT_ID = {name: value for name, value in task_headers().items() if name != "id"}

POISON: dict[str, dict[str, Any]] = {
    "invalid JSON": {"body": b"{nope", "content_type": "application/json", "headers": task_headers()},
    "not UTF-8": {"body": b"\xff\xfe", "content_type": "application/json", "headers": task_headers()},
    "bad compression": {
        "body": b"x",
        "content_type": "application/json",
        "headers": task_headers(compression="application/x-gzip"),
    },
    "foreign, no headers": {"body": b"hello", "content_type": "text/plain"},
    "content type not accepted": {
        "body": b"\x80\x04K\x01.",
        "content_type": "application/x-python-serialize",
        "headers": task_headers(),
    },
    "unknown task": {"body": EMPTY_TASK, "content_type": "application/json", "headers": task_headers(task="rm")},
    "bad eta": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(eta="tomorrow")},
    "bad expires": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(expires="never")},
    "JSON without headers": {"body": b'{"task": "x"}', "content_type": "application/json"},
    "an object": {"body": b'{"foo": 1}', "content_type": "application/json"},
    "a list": {"body": b"[1, 2]", "content_type": "application/json"},
    "null": {"body": b"null", "content_type": "application/json"},
    "a number": {"body": b"5", "content_type": "application/json"},
    "nothing": {"body": b"", "content_type": "application/json"},
    "raw bytes": {"body": b"\x00\x01", "content_type": "application/data"},
    "no id": {"body": b"x", "content_type": CONTENT_TYPE, "headers": WITHOUT_ID},
    "the task is a list": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(task=["a"])},
    "a time limit of text": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(timelimit="abc")},
    "time limits of text": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(timelimit=["a", "b"])},
    "a text for arguments": {"body": b'"abc"', "content_type": "application/json", "headers": task_headers()},
    "an empty envelope": {"body": b"", "content_type": CONTENT_TYPE, "headers": task_headers()},
    "no envelope": {"body": b"\x01" * 500, "content_type": CONTENT_TYPE, "headers": task_headers()},
    "too large": {"body": b"\x01" * 300_000, "content_type": CONTENT_TYPE, "headers": task_headers()},
    "headers with a canvas": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(chain=[{"a": 1}])},
}


@pytest.fixture(params=["rabbitmq", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    registry = request.getfixturevalue("redis_server")
    broker = request.getfixturevalue(f"{request.param}_server")
    with open_site(tmp_path, broker=broker.url, registry=registry.url, runtime="process") as opened:
        yield opened


def publish_raw(site: Site, message: dict[str, Any]) -> None:
    with Connection(site.settings.broker) as connection, connection.Producer() as producer:
        producer.publish(
            message["body"],
            routing_key=site.queue,
            exchange="",
            content_type=message["content_type"],
            content_encoding="binary",
            headers=message.get("headers", {}),
            correlation_id=uuid.uuid4().hex,
        )


def opened(site: Site) -> closing[Broker]:
    return closing(open_broker(site.settings.broker, lease=site.settings.lease))


def depth(site: Site, queue: str) -> int:
    with opened(site) as broker:
        return broker.queues.depth(queue).ready


def succeeds(site: Site) -> None:
    experiment = site.client.submit(image="any:1", command=["true"])
    assert experiment.result(timeout=40) == {"exit_code": 0}


def test_no_malformed_message_ends_the_worker_or_is_lost(site: Site) -> None:
    with opened(site) as broker, site.make_worker() as worker:
        broker.queues.create(site.queue)
        for message in POISON.values():
            publish_raw(site, message)
        pid = worker.pid
        dead = f"{site.queue}_dead"
        wait_until(lambda: depth(site, dead) == len(POISON), what="all of it set aside", within=LONG)
        succeeds(site)
        assert (worker.running, worker.pid) == (True, pid)
        found = [broker.post.receive(dead, timeout=timedelta(seconds=5)) for _ in POISON]
        assert {mail.headers["jobqueue-reason"] for mail in found if mail} == {"BAD_ENVELOPE"}
        assert sorted(mail.body for mail in found if mail) == sorted(message["body"] for message in POISON.values())
        for mail in found:
            assert mail is not None
            broker.post.acknowledge(mail)


def test_a_message_of_an_unknown_sender_is_dropped_without_an_answer(site: Site, tmp_path: Path) -> None:
    stranger_keys = tmp_path / "stranger"
    ensure_laptop_keys(stranger_keys)
    settings = Settings(**{**site.settings.model_dump(), "keys": stranger_keys})
    with opened(site) as broker, Client(settings) as stranger, site.make_worker() as worker:
        succeeds(site)
        broker.queues.create_plain(f"{site.queue}_reporting")
        experiment = stranger.submit(image="any:1", command=["true"])
        wait_until(lambda: refusals(worker), what="the refusal in the log", within=LONG)
        assert depth(site, f"{site.queue}_reporting") == 0
        assert depth(site, f"{site.queue}_dead") == 0
        assert experiment.state == "QUEUED"
        experiment.cancel()
        succeeds(site)


def refusals(worker: Process) -> list[str]:
    lines = worker.log.read_text().splitlines()
    return [line for line in lines if "delivery.refused" in line and "reason=UNTRUSTED" in line]


def test_no_plaintext_of_an_experiment_lies_in_the_queue(site: Site) -> None:
    with pytest.warns(match="no worker"):
        site.client.submit(
            image="secret-image:1",
            command=["secret-command", "--password", "secret-word"],
            env={"SECRET_NAME": "secret-value"},
        )
    with opened(site) as broker:
        queue = broker.request_queue(site.queue)
    with Connection(site.settings.broker) as connection, connection.channel() as channel:
        message = queue.bind(channel).get(accept=["json", CONTENT_TYPE])
        assert message is not None
        everything = bytes(message.body) + json.dumps([message.headers, message.properties], default=str).encode()
    assert b"secret" not in everything.lower()
    assert TASK.encode() in everything
