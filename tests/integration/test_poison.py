"""A worker that no message can kill: malformed, foreign, untrusted."""

import itertools
import json
import lzma
import pickle
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kombu import Connection
from redis import Redis
from services.broker_client import patiently
from services.garbage import KINDS, flood
from services.moto import SqsServer
from services.process import Process
from services.redis import RedisServer
from services.site import Site, open_site
from services.waiting import wait_until

from jobqueue.application import CONTENT_TYPE, TASK
from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker, Mail
from jobqueue.codec import decode_report
from jobqueue.config import Settings
from jobqueue.ids import ExperimentId, make_experiment_id
from jobqueue.keys import ensure_laptop_keys
from jobqueue.registry import open_registry
from jobqueue.routing import dead_letter_queue
from producers.client import Client
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

LONG = timedelta(seconds=90)
BROKERS = ("rabbitmq", "redis", "sqs")
BOMB_BYTES = 180 * 2**20
SQS_BYTES = 190_000


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


CANARY = Path(tempfile.gettempdir()) / f"jobqueue-canary-{uuid.uuid4().hex}"


class Pickled:
    """What leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (CANARY.touch, ())


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
    "pickled": {
        "body": pickle.dumps(([], {"x": Pickled()}, {})),
        "content_type": "application/x-python-serialize",
        "headers": task_headers(),
    },
    "YAML": {
        "body": f"!!python/object/apply:os.mkdir ['{CANARY}']".encode(),
        "content_type": "application/x-yaml",
        "headers": task_headers(),
    },
    "JSON for the task": {
        "body": EMPTY_TASK.replace(b"[[]", b'[["x"]'),
        "content_type": "application/json",
        "headers": task_headers(),
    },
    "callbacks": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(callbacks=[{"task": "x"}])},
    "a chord": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(chord={"task": "x"})},
    "an empty envelope": {"body": b"", "content_type": CONTENT_TYPE, "headers": task_headers()},
    "no envelope": {"body": b"\x01" * 500, "content_type": CONTENT_TYPE, "headers": task_headers()},
    "too large": {"body": b"\x01" * 300_000, "content_type": CONTENT_TYPE, "headers": task_headers()},
    "headers with a canvas": {"body": b"x", "content_type": CONTENT_TYPE, "headers": task_headers(chain=[{"a": 1}])},
}


@pytest.fixture(scope="module", params=BROKERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Process]]:
    """A site with one worker, on which most of this file is tried."""
    with serving(request, tmp_path_factory.mktemp(request.param)) as there:
        yield there


@pytest.fixture(params=BROKERS)
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Site, Process]]:
    """A site with one worker for a test after which nothing more is set aside for a while."""
    with serving(request, tmp_path) as there:
        pid = there[1].pid
        yield there
        assert (there[1].running, there[1].pid) == (True, pid), there[1].log_tail()


@contextmanager
def serving(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Site, Process]]:
    registry = request.getfixturevalue("redis_server")
    broker = request.getfixturevalue(f"{request.param}_server")
    with open_site(folder, broker=broker.url, registry=registry.url, runtime="process") as site:
        with opened(site) as opened_broker:
            patiently(lambda: opened_broker.queues.create(site.queue))
        with site.make_worker() as worker:
            yield site, worker


@pytest.fixture
def site(served: tuple[Site, Process]) -> Site:
    return served[0]


@pytest.fixture
def worker(served: tuple[Site, Process]) -> Iterator[Process]:
    """The worker, which nothing may end, and for which nothing may lie set aside when a test is over."""
    site, worker = served
    pid = worker.pid
    yield worker
    assert (worker.running, worker.pid) == (True, pid), worker.log_tail()
    take(site, f"{site.queue}_dead")


@pytest.fixture(params=BROKERS)
def unserved(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site of one test, without a worker."""
    registry = request.getfixturevalue("redis_server")
    broker = request.getfixturevalue(f"{request.param}_server")
    with open_site(tmp_path, broker=broker.url, registry=registry.url, runtime="process") as site:
        with opened(site) as opened_broker:
            patiently(lambda: opened_broker.queues.create(site.queue))
        yield site


on_redis = pytest.mark.parametrize("served", ["redis"], indirect=True)
on_sqs = pytest.mark.parametrize("served", ["sqs"], indirect=True)


def connected(site: Site) -> Connection:
    """Return a connection of whoever speaks to the broker as Celery does, and has time."""
    with opened(site) as broker:
        settings = broker.celery_settings()
    options = dict(settings["broker_transport_options"])
    if "socket_timeout" in options:
        options["socket_timeout"] = LONG.total_seconds()
    return Connection(settings["broker_url"], transport_options=options)


def publish_raw(site: Site, *messages: dict[str, Any]) -> None:
    with connected(site) as connection, connection.Producer() as producer:
        for message in messages:
            producer.publish(
                message["body"],
                routing_key=site.queue,
                exchange="",
                content_type=message["content_type"],
                content_encoding="binary",
                headers=message.get("headers", {}),
                correlation_id=uuid.uuid4().hex,
                reply_to=f"{site.queue}_reply",
            )


def opened(site: Site) -> closing[Broker]:
    return closing(open_broker(site.settings.broker, lease=site.settings.lease))


def depth(site: Site, queue: str) -> int:
    with opened(site) as broker:
        return patiently(lambda: broker.queues.depth(queue)).ready


def take(site: Site, queue: str) -> list[Mail]:
    """Take all out of a queue."""
    found = []
    with opened(site) as broker:
        while mail := broker.post.receive(queue, timeout=timedelta(milliseconds=200)):
            broker.post.acknowledge(mail)
            found.append(mail)
    return found


def succeeds(site: Site) -> None:
    experiment = site.client.submit(image="any:1", command=["true"])
    assert experiment.result(timeout=90) == {"exit_code": 0}


@pytest.mark.security_case("malformed messages; pickled body; JSON body to the task")
def test_no_malformed_message_ends_the_worker_or_is_lost(site: Site, worker: Process) -> None:
    """Messages that end a stock worker: pickled, YAML, JSON for the task, no or wrong headers, calls, chains, chords.

    Refused: each is set aside as it came, as BAD_ENVELOPE; nothing is unpickled, called or answered.
    Evidence: the dead letters, the worker's process is the same, no file of the canary, nothing in a queue to reply to.
    """
    is_sqs = site.settings.broker.startswith("sqs")
    poison = [message for message in POISON.values() if len(message["body"]) < SQS_BYTES or not is_sqs]
    with opened(site) as broker:
        patiently(lambda: broker.queues.create_plain(f"{site.queue}_reply"))
    publish_raw(site, *poison)
    dead = f"{site.queue}_dead"
    wait_until(lambda: depth(site, dead) == len(poison), what="all of it set aside", within=LONG)
    succeeds(site)
    found = take(site, dead)
    assert {mail.headers["jobqueue-reason"] for mail in found} == {"BAD_ENVELOPE"}
    assert sorted(mail.body for mail in found) == sorted(message["body"] for message in poison)
    assert not CANARY.exists()
    assert depth(site, f"{site.queue}_reply") == 0


def test_what_can_be_set_aside_nowhere_comes_back_to_nobody(alone: tuple[Site, Process]) -> None:
    site, worker = alone
    dead = dead_letter_queue(site.queue)
    with opened(site) as broker:
        patiently(lambda: broker.queues.delete(dead))
        publish_raw(site, *[POISON["no envelope"]] * 5)
        wait_until(lambda: depth(site, site.queue) == 0, what="nothing left of it", within=LONG)
        succeeds(site)
        assert not patiently(lambda: broker.queues.exists(dead))
        assert f"`jobqueue queues create {site.queue}` makes it" in worker.log.read_text()
        patiently(lambda: broker.queues.create(site.queue))

    def is_kept() -> bool:
        publish_raw(site, POISON["no envelope"])
        return depth(site, dead) > 0

    wait_until(is_kept, what="dead letters once there is a queue for them", within=LONG)


# What lies in a Redis list without being a message of kombu's, or only nearly one.
NEARLY: dict[str, Any] = {
    "body": "",
    "content-type": CONTENT_TYPE,
    "content-encoding": "binary",
    "headers": task_headers(),
    "properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {"routing_key": "elsewhere"}},
}
RAW: dict[str, bytes] = {
    "bytes": b"\x00\xff\xfe",
    "text": b"hello",
    "nothing": b"",
    "null": b"null",
    "a list": b"[1, 2]",
    "an object": b"{}",
    "deeply nested": b"[" * 200_000,
    "headers in a list": json.dumps({**NEARLY, "headers": [1]}).encode(),
    "no properties": json.dumps({name: value for name, value in NEARLY.items() if name != "properties"}).encode(),
    "properties of text": json.dumps({**NEARLY, "properties": "x"}).encode(),
    "a body that is a number": json.dumps({**NEARLY, "body": 5}).encode(),
    "a body that is not encoded": json.dumps({**NEARLY, "body": "a"}).encode(),
    "an unknown encoding": json.dumps({**NEARLY, "properties": {"body_encoding": "rot13"}}).encode(),
    "half a character": json.dumps({**NEARLY, "body": "\ud800", "properties": {}}).encode(),
}


@pytest.mark.security_case("malformed messages; JSON nested 200,000 deep")
@on_redis
def test_what_is_no_message_at_all_is_set_aside_as_it_came(
    site: Site, worker: Process, redis_server: RedisServer
) -> None:
    """Bytes in a Redis list that are no message of kombu's, or nearly one; JSON nested 200,000 deep.

    Refused: each is set aside as it came, as BAD_ENVELOPE.
    Evidence: the dead letters, the worker's process is the same, and it kept its connection.
    """
    before = len(worker.log.read_text())
    with closing(Redis.from_url(redis_server.url)) as client:
        for raw in RAW.values():
            client.lpush(site.queue, raw)
        client.lpush(site.queue + "\x06\x163", b"of another priority")
    dead = f"{site.queue}_dead"
    expected = sorted([*RAW.values(), b"of another priority"])
    wait_until(lambda: depth(site, dead) == len(expected), what="all of it set aside", within=LONG)
    succeeds(site)
    assert "Connection to broker lost" not in worker.log.read_text()[before:]
    found = take(site, dead)
    assert sorted(mail.body for mail in found) == expected
    assert {mail.headers["jobqueue-reason"] for mail in found} == {"BAD_ENVELOPE"}


@on_sqs
def test_what_is_no_message_at_sqs_is_set_aside_as_it_came(site: Site, worker: Process, sqs_server: SqsServer) -> None:
    texts = {raw.decode() for name, raw in RAW.items() if name not in ("bytes", "nothing")}
    with closing(sqs_server.client()) as client:
        url = client.get_queue_url(QueueName=site.queue)["QueueUrl"]
        forged = {"jobqueue-reason": {"DataType": "String", "StringValue": "FORGED"}}
        for text in texts:
            client.send_message(QueueUrl=url, MessageBody=text, MessageAttributes=forged)
        dead = f"{site.queue}_dead"
        wait_until(lambda: depth(site, dead) == len(texts), what="all of it set aside", within=LONG)
        succeeds(site)
        found = take(site, dead)
        assert len(found) == len(texts)
        raw = client.receive_message(QueueUrl=client.get_queue_url(QueueName=dead)["QueueUrl"], MaxNumberOfMessages=10)
        assert "Messages" not in raw
        assert {mail.headers["jobqueue-reason"] for mail in found} == {"BAD_ENVELOPE"}


@on_redis
def test_a_sender_names_neither_the_queue_nor_the_tag_of_its_message(
    site: Site, worker: Process, redis_server: RedisServer
) -> None:
    with opened(site) as broker, closing(Redis.from_url(redis_server.url, decode_responses=True)) as client:
        other = f"{site.queue}x"
        broker.queues.create(other)
        running = site.client.submit(image="any:1", command=["sleep", "4"])
        wait_until(lambda: running.state == "RUNNING", what="something that runs", within=LONG)
        deliveries = client.hgetall("jobqueue:unacked").items()
        (tag,) = [str(tag) for tag, noted in deliveries if json.loads(noted)[2] == site.queue]
        forged = {"body_encoding": "base64", "delivery_tag": tag, "delivery_info": {"routing_key": other}}
        client.lpush(site.queue, json.dumps({**NEARLY, "properties": forged}))
        assert running.result(timeout=90) == {"exit_code": 0}
        wait_until(lambda: depth(site, f"{site.queue}_dead") == 1, what="the forged one set aside", within=LONG)
        assert depth(site, f"{other}_dead") == 0
        assert not client.hexists("jobqueue:unacked", tag)


@pytest.mark.security_case("zip bomb in the compression header")
@pytest.mark.parametrize("pack", [zlib, lzma], ids=["zlib", "lzma"])
def test_no_worker_unpacks_a_compressed_body(site: Site, worker: Process, pack: ModuleType) -> None:
    """A body of 180 MiB of zeros, compressed, under a header that has Celery unpack it at its arrival.

    Refused: it is set aside as it came; no body is unpacked in a worker.
    Evidence: the dead letter, and the most memory that the worker has ever used.
    """
    name = {"zlib": "application/x-gzip", "lzma": "application/x-lzma"}[pack.__name__]
    bomb = pack.compress(bytes(BOMB_BYTES))
    succeeds(site)
    before = largest(worker)
    publish_raw(site, {"body": bomb, "content_type": CONTENT_TYPE, "headers": task_headers(compression=name)})
    dead = f"{site.queue}_dead"
    wait_until(lambda: depth(site, dead) == 1, what="the bomb set aside", within=LONG)
    succeeds(site)
    assert largest(worker) - before < BOMB_BYTES // 3
    (mail,) = take(site, dead)
    assert mail.body == bomb
    assert (mail.headers["jobqueue-reason"], mail.headers["compression"]) == ("BAD_ENVELOPE", name)


def largest(worker: Process) -> int:
    """Return the most memory that a worker has ever used, in bytes."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.security_case("wrong key")
def test_a_message_of_an_unknown_sender_is_dropped_without_an_answer(unserved: Site, tmp_path: Path) -> None:
    """A stranger seals and signs an experiment for a queue of ours.

    Refused: dropped as UNTRUSTED, counted, never answered.
    Evidence: the worker's log, nothing set aside, nothing of it on the reporting queue, the experiment stays queued.
    """
    site, stranger_keys = unserved, tmp_path / "stranger"
    ensure_laptop_keys(stranger_keys)
    settings = Settings(**{**site.settings.model_dump(exclude_unset=True), "keys": stranger_keys})
    reporting = f"{site.queue}_reporting"
    # Of its own: a worker logs few of many refusals.
    with opened(site) as broker, Client(settings) as stranger, site.make_worker() as worker:
        succeeds(site)
        patiently(lambda: broker.queues.create_plain(reporting))
        experiment = stranger.submit(image="any:1", command=["true"])
        wait_until(lambda: refusals(worker), what="the refusal in the log", within=LONG)
        assert depth(site, f"{site.queue}_dead") == 0
        assert experiment.state == "QUEUED"
        # What was submitted before and behind it may be reported.
        succeeds(site)
        assert experiment.id not in {decode_report(mail.body).experiment_id for mail in take(site, reporting)}
        experiment.cancel()


def refusals(worker: Process) -> list[str]:
    lines = worker.log.read_text().splitlines()
    return [line for line in lines if "delivery.refused" in line and "reason=UNTRUSTED" in line]


def test_no_plaintext_of_an_experiment_lies_in_the_queue(unserved: Site) -> None:
    site = unserved
    with pytest.warns(JobqueueWarning):
        site.client.submit(
            image="secret-image:1",
            command=["secret-command", "--password", "secret-word"],
            env={"SECRET_NAME": "secret-value"},
        )
    with opened(site) as broker:
        queue = broker.request_queue(site.queue)
    with connected(site) as connection, connection.channel() as channel:
        message = queue.bind(channel).get(accept=["json", CONTENT_TYPE])
        assert message is not None
        everything = bytes(message.body) + json.dumps([message.headers, message.properties], default=str).encode()
    assert b"secret" not in everything.lower()
    assert TASK.encode() in everything


HUGE_BYTES = 24 * 2**20


@pytest.mark.security_case("100 MB body")
@pytest.mark.parametrize("size", [HUGE_BYTES, pytest.param(100 * 2**20, marks=pytest.mark.full)])
@pytest.mark.parametrize("served", ["rabbitmq", "redis"], indirect=True)
def test_of_what_is_far_too_large_only_the_beginning_is_taken(site: Site, worker: Process, size: int) -> None:
    """A body of 100 MB (of 24 in short) under a producer's headers.

    Refused: its beginning is set aside as BAD_ENVELOPE. RabbitMQ's transport keeps no more; Redis hands it over once.
    Evidence: the dead letter of 64 KiB, and on RabbitMQ the most memory that the worker has ever used.
    Red before: the whole of it was read, decoded, and copied into the dead-letter queue.
    """
    succeeds(site)
    before = largest(worker)
    publish_raw(site, {"body": bytes(size), "content_type": CONTENT_TYPE, "headers": task_headers()})
    wait_until(lambda: depth(site, f"{site.queue}_dead") == 1, what="it set aside", within=LONG)
    succeeds(site)
    grown = largest(worker) - before
    assert grown < (8 * size if site.settings.broker.startswith("redis") else HUGE_BYTES // 2)
    (mail,) = take(site, f"{site.queue}_dead")
    assert len(mail.body) == 64 * 1024


@pytest.mark.security_case("100,000 garbage messages in a row")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [1500, pytest.param(100_000, marks=pytest.mark.full)])
def test_a_worker_works_on_behind_a_flood(alone: tuple[Site, Process], count: int) -> None:
    """A flood of garbage of five kinds, 100,000 messages (1,500 in short), before and behind a sound one.

    Refused: each one; what is no envelope is set aside up to a bound, nothing is answered, a line a second is logged.
    Evidence: the sound ones succeed, the worker's process is the same, its memory, dead letters and lines are bounded.
    Red before: each message that is no envelope was copied, and Redis gave a worker about a thousand a second.
    """
    site, worker = alone
    count = count if not site.settings.broker.startswith("sqs") else 100
    succeeds(site)
    sound = _sound_message(site)
    lines, before = worker.log.read_text().count("delivery.refused"), largest(worker)
    began = time.monotonic()
    for some in (count // 2, count - count // 2):
        kinds = itertools.cycle(KINDS.values())
        flood(site.settings, site.queue, (next(kinds)(sound) for _ in range(some)))
        experiment = site.client.submit(image="any:1", command=["true"])
    assert experiment.result(timeout=600) == {"exit_code": 0}
    wait_until(lambda: depth(site, site.queue) == 0, what="nothing left of it", within=timedelta(minutes=10))
    took = time.monotonic() - began
    assert worker.log.read_text().count("delivery.refused") - lines <= took + 2
    assert largest(worker) - before < 40 * 2**20
    assert depth(site, f"{site.queue}_dead") <= 1000


def _sound_message(site: Site) -> bytes:
    """Return the envelope of an experiment that is cancelled."""
    with closing(open_registry(site.settings.registry)) as registry:
        experiment = site.client.submit(image="any:1", command=["sleep", "60"])
        message = registry.experiments.get(ExperimentId(experiment.id)).submission.message
    experiment.cancel()
    return message
