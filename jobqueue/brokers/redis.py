"""Redis: kombu's lists, with unacknowledged deliveries that come back soon after their worker falls silent.

A Redis list exists only while something lies in it, so which queues exist is written down in a set of our own. kombu
keeps a delivery in a hash and the time of its receipt in a sorted set; moving that time keeps a delivery alive or puts
it off. Mail is kept apart from that and taken by a script; workers take requests by the same one (`redis_transport`).
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from jobqueue.brokers.base import Deliveries, Depth, Line, Mail, Post, QueueRecord, Queues, Survey, missing_queue
from jobqueue.brokers.copies import dead_headers, pack, repack, unpack_json
from jobqueue.brokers.lines import BatchLine
from jobqueue.brokers.polling import poll
from jobqueue.brokers.queue_records import record_from_json, record_to_json
from jobqueue.brokers.redis_server import (
    CONNECT_SECONDS,
    HEALTH_CHECK_SECONDS,
    QUEUES,
    REPLY_SECONDS,
    UNACKED_INDEX,
    RedisServer,
    deferred_index,
    lists_of,
    mail_hash,
    mail_index,
    mail_keys,
)
from jobqueue.brokers.redis_survey import RedisSurvey, read_depths
from jobqueue.routing import dead_letter_queue, first_queue
from jobqueue.tls import split_certificates

# Names of our own: a Celery application beside us in the same database has another visibility timeout.
_UNACKED: Final = "jobqueue:unacked"
_UNACKED_MUTEX: Final = "jobqueue:unacked_mutex"
_RECORDS: Final = "jobqueue:queue_records"

_SCHEME: Final = "jobqueue-redis"
_TRANSPORT: Final = "jobqueue.brokers.redis_transport:Transport"
# For a keep-alive that comes a little late; never more than the lease itself.
_VISIBILITY_MARGIN: Final = timedelta(seconds=5)
_SWEEP_SECONDS: Final = 1
# A worker that dies while it gives messages back must not keep the others from it for long.
_MUTEX_SECONDS: Final = 5
# What was due so long ago has come back, whoever gives messages back, and need not be known as put off any more.
SURELY_BACK_SECONDS: Final = 60


class RedisBroker:
    """A Redis server or socket, 6.2 or newer, with its append-only file on.

    Args:
        url: `redis://`, `rediss://` or `redis+socket://`, as Celery takes it.
        lease: a delivery that nobody keeps alive comes back about this long after it was received.
    """

    is_pushing = False
    is_charging = False

    def __init__(self, url: str, *, lease: timedelta) -> None:
        self._url = url
        self._visibility = lease + min(lease, _VISIBILITY_MARGIN)
        self._server = RedisServer(url)
        self.queues: Queues = RedisQueues(self._server)
        self.survey: Survey = RedisSurvey(self._server, records=_RECORDS)
        self.deliveries: Deliveries = RedisDeliveries(self._server, self._visibility)
        self.post: Post = RedisPost(self._server, self._visibility)

    def celery_settings(self) -> dict[str, Any]:
        """Return how Celery is to connect, and how soon it gives silent workers' deliveries back."""
        from kombu.transport import TRANSPORT_ALIASES

        TRANSPORT_ALIASES[_SCHEME] = _TRANSPORT
        url, files = split_certificates(self._url)
        settings: dict[str, Any] = {
            "broker_url": url,
            "broker_read_url": _SCHEME + url.removeprefix("redis").removeprefix("s"),
            "broker_transport_options": {
                "visibility_timeout": math.ceil(self._visibility.total_seconds()),
                "unacked_key": _UNACKED,
                "unacked_index_key": UNACKED_INDEX,
                "unacked_mutex_key": _UNACKED_MUTEX,
                "unacked_mutex_expire": _MUTEX_SECONDS,
                "unacked_restore_interval": _SWEEP_SECONDS,
                "unacked_restore_throttle": 1,
                "socket_connect_timeout": CONNECT_SECONDS,
                "socket_timeout": REPLY_SECONDS,
                "socket_keepalive": True,
                "health_check_interval": HEALTH_CHECK_SECONDS,
            },
        }
        if not self._url.startswith("rediss://"):
            return settings
        import ssl

        checks = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **files.options(prefix="ssl_")}
        return {**settings, "broker_use_ssl": checks}

    def request_queue(self, name: str) -> Any:
        """Return the `kombu.Queue`; the default exchange leads straight to the list of that name."""
        from kombu import Exchange, Queue

        return Queue(name, Exchange(""), routing_key=name, no_declare=True)

    def consumed(self, name: str) -> list[Any]:
        """Return the one `kombu.Queue`: the transport looks into what is served before it by itself."""
        return [self.request_queue(name)]

    def line(self, connection: Any) -> Line:
        """Return a way into the request queues: a list takes what is put into it, whether its queue exists or not."""
        return BatchLine(connection, find_missing=self._server.clear_missing)

    def close(self) -> None:
        """Close its connections; mail that was not acknowledged comes back after a while."""
        self._server.close()


class RedisQueues:
    """Queues by name, as noted in a set."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def create(
        self,
        queue: str,
        *,
        expires_at: datetime | None = None,
        owner: str = "",
        retention: timedelta | None = None,
    ) -> None:
        """Note a request queue and its companions; a delivery that is put off needs no queue here."""
        record = QueueRecord(queue=queue, expires_at=expires_at, owner=owner, retention=retention)
        with self._server.translated() as client, client.pipeline() as pipe:
            pipe.hset(_RECORDS, queue, json.dumps(record_to_json(record)))
            pipe.sadd(QUEUES, queue, first_queue(queue), dead_letter_queue(queue))
            pipe.execute()

    def listed(self) -> list[QueueRecord]:
        """Return the request queues that were noted, by name."""
        with self._server.translated() as client:
            found = client.hgetall(_RECORDS)
        return [record_from_json(queue.decode(), json.loads(text)) for queue, text in sorted(found.items())]

    def create_plain(self, queue: str) -> None:
        """Note one queue."""
        with self._server.translated() as client:
            client.sadd(QUEUES, queue)

    def exists(self, queue: str) -> bool:
        """Tell whether it was created."""
        with self._server.translated() as client:
            return bool(client.sismember(QUEUES, queue))

    def depth(self, queue: str) -> Depth:
        """Return how much lies in it under any priority and in what is served before it, and how much was put off."""
        with self._server.translated() as client:
            depths = read_depths(self._server, client, [queue])
        if queue not in depths:
            raise missing_queue(queue)
        return depths[queue]

    def delete(self, queue: str) -> None:
        """Delete a queue, its companions, and what was put off."""
        names = (queue, first_queue(queue), dead_letter_queue(queue))
        with self._server.translated() as client:
            put_off = client.zrange(deferred_index(queue), 0, -1)
            with client.pipeline() as pipe:
                pipe.srem(QUEUES, *names)
                pipe.hdel(_RECORDS, queue)
                pipe.delete(deferred_index(queue))
                for name in names:
                    pipe.delete(*lists_of(name), mail_hash(name), mail_index(name))
                if put_off:
                    pipe.zrem(UNACKED_INDEX, *put_off)
                    pipe.hdel(_UNACKED, *put_off)
                pipe.execute()


class RedisDeliveries:
    """What becomes of one delivery, by moving the time of its receipt."""

    def __init__(self, server: RedisServer, visibility: timedelta) -> None:
        self._server = server
        self._visibility_seconds = visibility.total_seconds()

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        """Make it a delivery of now."""
        with self._server.translated() as client:
            client.zadd(UNACKED_INDEX, {properties["delivery_tag"]: time.time()}, xx=True)

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        """Make it a delivery of the past that becomes visible after `delay`, and free its place at this consumer."""
        from kombu.transport.virtual import QoS

        received = time.time() + delay.total_seconds() - self._visibility_seconds
        with self._server.translated() as client, client.pipeline() as pipe:
            pipe.zadd(UNACKED_INDEX, {message.delivery_tag: received}, xx=True)
            pipe.zadd(deferred_index(queue), {message.delivery_tag: received})
            pipe.zremrangebyscore(
                deferred_index(queue), "-inf", time.time() - self._visibility_seconds - SURELY_BACK_SECONDS
            )
            pipe.execute()
        # Only the consumer's own bookkeeping: the transport's `ack` would remove the message itself.
        QoS.ack(message.channel.qos, message.delivery_tag)
        message._state = "REQUEUED"  # noqa: SLF001  # so that a later `ack` of it is an error, not a loss

    def dead_letter(self, message: Any, *, queue: str, reason: str, detail: str) -> None:
        """Put a copy into the dead-letter queue, then acknowledge."""
        headers = dead_headers(message.headers, reason=reason, detail=detail)
        # As it came, with its body still encoded and compressed.
        raw = message._raw  # noqa: SLF001  # kombu's own restoring reads it too
        target = dead_letter_queue(queue)
        with self._server.translated():
            if not self._server.send(target, repack(raw, target, headers=headers)):
                raise missing_queue(target)
            message.ack()


@dataclass(frozen=True, kw_only=True)
class _Receipt:
    queue: str
    tag: str


class RedisPost:
    """Bytes to a named queue and back."""

    def __init__(self, server: RedisServer, visibility: timedelta) -> None:
        self._server = server
        self._visibility_seconds = visibility.total_seconds()

    def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send. Returns False when the queue does not exist."""
        with self._server.translated():
            return self._server.send(queue, pack(queue, body, content_type=content_type, headers=headers or {}))

    def receive(self, queue: str, *, timeout: timedelta) -> Mail | None:
        """Return the next message, or None after `timeout`; first of all what was not acknowledged in time."""
        return poll(lambda: self._fetch(queue), timeout=timeout)

    def acknowledge(self, mail: Mail) -> None:
        """Remove a received message for good."""
        receipt = mail.receipt(_Receipt)
        with self._server.translated() as client, client.pipeline() as pipe:
            pipe.hdel(mail_hash(receipt.queue), receipt.tag)
            pipe.zrem(mail_index(receipt.queue), receipt.tag)
            pipe.execute()

    def give_back(self, mail: Mail) -> None:
        """Put a received message back to where it was taken."""
        receipt = mail.receipt(_Receipt)
        keys = [mail_hash(receipt.queue), mail_index(receipt.queue), receipt.queue]
        with self._server.translated():
            self._server.give_back(keys=keys, args=[receipt.tag])

    def _fetch(self, queue: str) -> Mail | None:
        tag = str(uuid4())
        with self._server.translated():
            raw, _, *missing = self._server.receive(keys=mail_keys(queue), args=[tag, self._visibility_seconds, queue])
        if missing:
            raise missing_queue(queue)
        return None if raw is None else unpack_json(raw, handle=_Receipt(queue=queue, tag=tag))
