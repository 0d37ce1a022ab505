"""Messages that nobody ought to answer, and many of them at a time."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from jobqueue.application import CONTENT_TYPE, TASK
from jobqueue.brokers.copies import pack
from jobqueue.brokers.sqs_address import parse_address
from jobqueue.codec import SealedEnvelope, decode_envelope, encode_envelope
from jobqueue.config import Settings
from jobqueue.ids import make_experiment_id

_BYTES: Final = 1500
_BATCH: Final = 500
_SQS_BATCH: Final = 10


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One message as a stranger puts it into a queue."""

    body: bytes
    content_type: str = CONTENT_TYPE
    headers: dict[str, Any] = field(default_factory=dict)


def headers(**changes: object) -> dict[str, Any]:
    """Return the headers of a producer's message, so that more than them has to be looked at."""
    return {"lang": "py", "task": TASK, "id": make_experiment_id(), "retries": 0, "timelimit": [None, None], **changes}


def random_bytes(_sound: bytes) -> Garbage:
    return Garbage(body=os.urandom(_BYTES), headers=headers())


def wrong_type(sound: bytes) -> Garbage:
    return Garbage(body=sound, content_type="application/x-python-serialize", headers=headers())


def unsigned(sound: bytes) -> Garbage:
    return _changed(sound, signature=b"")


def unknown_sender(sound: bytes) -> Garbage:
    return _changed(sound, sender_key_id=uuid4().hex)


def wrong_signature(sound: bytes) -> Garbage:
    return _changed(sound, signature=os.urandom(64))


KINDS: Final[dict[str, Callable[[bytes], Garbage]]] = {
    made.__name__: made for made in (random_bytes, wrong_type, unsigned, unknown_sender, wrong_signature)
}


def _changed(sound: bytes, **changes: Any) -> Garbage:
    envelope: SealedEnvelope = replace(decode_envelope(sound), nonce=os.urandom(16), **changes)
    return Garbage(body=encode_envelope(envelope), headers=headers())


def flood(settings: Settings, queue: str, messages: Iterable[Garbage]) -> None:
    """Put many messages into a queue, as fast as a broker takes them, past everything that is ours."""
    publish = {"amqp": _flood_rabbitmq, "redis": _flood_redis, "sqs": _flood_sqs}[settings.broker.split(":")[0]]
    publish(settings.broker, queue, messages)


def _flood_redis(url: str, queue: str, messages: Iterable[Garbage]) -> None:
    from redis import Redis

    with Redis.from_url(url) as client:
        packed = _packed(queue, messages)
        while some := list(islice(packed, _BATCH)):
            client.lpush(queue, *some)


def _flood_rabbitmq(url: str, queue: str, messages: Iterable[Garbage]) -> None:
    from amqp import Message
    from kombu import Connection

    with Connection(url) as client:
        channel: Any = client.default_channel
        for each in messages:
            message = Message(each.body, content_type=each.content_type, application_headers=each.headers)
            channel.basic_publish(message, exchange="", routing_key=queue)
        channel.queue_declare(queue, passive=True)


def _flood_sqs(url: str, queue: str, messages: Iterable[Garbage]) -> None:
    import boto3

    address = parse_address(url)
    with closing(
        boto3.client(
            "sqs",
            endpoint_url=address.endpoint,
            region_name=address.region,
            aws_access_key_id=address.key,
            aws_secret_access_key=address.secret,
        )
    ) as client:
        target = client.get_queue_url(QueueName=queue)["QueueUrl"]
        packed = _packed(queue, messages)
        while some := list(islice(packed, _SQS_BATCH)):
            entries = [{"Id": str(number), "MessageBody": text} for number, text in enumerate(some)]
            client.send_message_batch(QueueUrl=target, Entries=entries)


def _packed(queue: str, messages: Iterable[Garbage]) -> Iterator[str]:
    for each in messages:
        yield json.dumps(pack(queue, each.body, content_type=each.content_type, headers=each.headers))
