"""Redis: kombu's lists, with unacknowledged deliveries that come back soon after their worker falls silent.

A Redis list exists only while something lies in it, so which queues exist is written down in a set of our own. kombu
keeps a delivery in a hash and the time of its receipt in a sorted set; moving that time keeps a delivery alive or puts
it off. Mail is kept apart from that and taken by a script: kombu loses what it popped when it dies before noting it.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from jobqueue.brokers.base import Deliveries, Depth, Mail, Post, Queues
from jobqueue.brokers.copies import dead_headers, pack, repack, unpack_json
from jobqueue.brokers.polling import poll
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import dead_letter_queue

# Names of our own: a Celery application beside us in the same database has another visibility timeout.
_QUEUES: Final = "jobqueue:queues"
_UNACKED: Final = "jobqueue:unacked"
_UNACKED_INDEX: Final = "jobqueue:unacked_index"
_UNACKED_MUTEX: Final = "jobqueue:unacked_mutex"
_DEFERRED: Final = "jobqueue:deferred:"
_MAIL: Final = "jobqueue:mail:"
_MAIL_INDEX: Final = "jobqueue:mail_index:"

_VISIBILITY_MARGIN: Final = timedelta(seconds=5)
_SWEEP_SECONDS: Final = 1
# A worker that dies while it gives messages back must not keep the others from it for long.
_MUTEX_SECONDS: Final = 5
_CONNECT_SECONDS: Final = 0.9
_REPLY_SECONDS: Final = 1.5
_HEALTH_CHECK_SECONDS: Final = 25

_SEND: Final = """
if redis.call('sismember', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('lpush', KEYS[2], ARGV[2])
return 1
"""
_RECEIVE: Final = """
if redis.call('sismember', KEYS[1], ARGV[1]) == 0 then return 0 end
local clock = redis.call('time')
local now = clock[1] + clock[2] / 1000000
for _, tag in ipairs(redis.call('zrevrangebyscore', KEYS[4], now, '-inf')) do
  local mail = redis.call('hget', KEYS[3], tag)
  if mail then redis.call('rpush', KEYS[2], mail) end
  redis.call('hdel', KEYS[3], tag)
  redis.call('zrem', KEYS[4], tag)
end
local mail = redis.call('rpop', KEYS[2])
if not mail then return false end
redis.call('hset', KEYS[3], ARGV[2], mail)
redis.call('zadd', KEYS[4], now + ARGV[3], ARGV[2])
return mail
"""
# What was put off and has come back since was received anew, or is acknowledged.
_COUNT_DEFERRED: Final = """
local count = 0
local tags = redis.call('zrange', KEYS[1], 0, -1, 'withscores')
for i = 1, #tags, 2 do
  if redis.call('zscore', KEYS[2], tags[i]) == tags[i + 1] then count = count + 1
  else redis.call('zrem', KEYS[1], tags[i]) end
end
return count
"""


class RedisBroker:
    """A Redis server or socket, 6.2 or newer, with its append-only file on.

    Args:
        url: `redis://`, `rediss://` or `redis+socket://`, as Celery takes it.
        lease: a delivery that nobody keeps alive comes back about this long after it was received.
    """

    def __init__(self, url: str, *, lease: timedelta) -> None:
        self._url = url
        self._visibility = lease + _VISIBILITY_MARGIN
        self._server = _Server(url)
        self.queues: Queues = RedisQueues(self._server)
        self.deliveries: Deliveries = RedisDeliveries(self._server, self._visibility)
        self.post: Post = RedisPost(self._server, self._visibility)

    def celery_settings(self) -> dict[str, Any]:
        """Return how Celery is to connect, and how soon it gives silent workers' deliveries back."""
        settings: dict[str, Any] = {
            "broker_url": self._url,
            "broker_transport_options": {
                "visibility_timeout": math.ceil(self._visibility.total_seconds()),
                "unacked_key": _UNACKED,
                "unacked_index_key": _UNACKED_INDEX,
                "unacked_mutex_key": _UNACKED_MUTEX,
                "unacked_mutex_expire": _MUTEX_SECONDS,
                "unacked_restore_interval": _SWEEP_SECONDS,
                "unacked_restore_throttle": 1,
                "socket_connect_timeout": _CONNECT_SECONDS,
                "socket_timeout": _REPLY_SECONDS,
                "socket_keepalive": True,
                "health_check_interval": _HEALTH_CHECK_SECONDS,
            },
        }
        if not self._url.startswith("rediss://"):
            return settings
        import ssl

        return {**settings, "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}}

    def request_queue(self, name: str) -> Any:
        """Return the `kombu.Queue`; the default exchange leads straight to the list of that name."""
        from kombu import Exchange, Queue

        return Queue(name, Exchange(""), routing_key=name, no_declare=True)

    def close(self) -> None:
        """Close its connections; mail that was not acknowledged comes back after a while."""
        self._server.close()


class RedisQueues:
    """Queues by name, as noted in a set."""

    def __init__(self, server: "_Server") -> None:
        self._server = server

    def create(self, queue: str) -> None:
        """Note a request queue and its dead-letter queue; a delivery that is put off needs no queue here."""
        with self._server.translated() as client:
            client.sadd(_QUEUES, queue, dead_letter_queue(queue))

    def create_plain(self, queue: str) -> None:
        """Note one queue."""
        with self._server.translated() as client:
            client.sadd(_QUEUES, queue)

    def exists(self, queue: str) -> bool:
        """Tell whether it was created."""
        with self._server.translated() as client:
            return bool(client.sismember(_QUEUES, queue))

    def depth(self, queue: str) -> Depth:
        """Return how much lies in it under any priority, and how much was put off."""
        with self._server.translated() as client, client.pipeline() as pipe:
            pipe.sismember(_QUEUES, queue)
            self._server.count_deferred(keys=[_DEFERRED + queue, _UNACKED_INDEX], client=pipe)
            for key in _lists(queue):
                pipe.llen(key)
            known, *counts = pipe.execute()
        if not known:
            raise _missing(queue)
        return Depth(ready=sum(counts))

    def delete(self, queue: str) -> None:
        """Delete a queue, its dead letters, and what was put off."""
        names = (queue, dead_letter_queue(queue))
        with self._server.translated() as client:
            put_off = client.zrange(_DEFERRED + queue, 0, -1)
            with client.pipeline() as pipe:
                pipe.srem(_QUEUES, *names)
                pipe.delete(_DEFERRED + queue)
                for name in names:
                    pipe.delete(*_lists(name), _MAIL + name, _MAIL_INDEX + name)
                if put_off:
                    pipe.zrem(_UNACKED_INDEX, *put_off)
                    pipe.hdel(_UNACKED, *put_off)
                pipe.execute()


class RedisDeliveries:
    """What becomes of one delivery, by moving the time of its receipt."""

    def __init__(self, server: "_Server", visibility: timedelta) -> None:
        self._server = server
        self._visibility_seconds = visibility.total_seconds()

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        """Make it a delivery of now."""
        with self._server.translated() as client:
            client.zadd(_UNACKED_INDEX, {properties["delivery_tag"]: time.time()}, xx=True)

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        """Make it a delivery of the past that becomes visible after `delay`, and free its place at this consumer."""
        from kombu.transport.virtual import QoS

        received = time.time() + delay.total_seconds() - self._visibility_seconds
        with self._server.translated() as client, client.pipeline() as pipe:
            pipe.zadd(_UNACKED_INDEX, {message.delivery_tag: received}, xx=True)
            pipe.zadd(_DEFERRED + queue, {message.delivery_tag: received})
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
                raise _missing(target)
            message.ack()


@dataclass(frozen=True, kw_only=True)
class _Receipt:
    queue: str
    tag: str


class RedisPost:
    """Bytes to a named queue and back."""

    def __init__(self, server: "_Server", visibility: timedelta) -> None:
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
        receipt = mail.handle
        if not isinstance(receipt, _Receipt):
            raise TypeError("this mail was not received from Redis")
        with self._server.translated() as client, client.pipeline() as pipe:
            pipe.hdel(_MAIL + receipt.queue, receipt.tag)
            pipe.zrem(_MAIL_INDEX + receipt.queue, receipt.tag)
            pipe.execute()

    def _fetch(self, queue: str) -> Mail | None:
        tag = str(uuid4())
        keys = [_QUEUES, queue, _MAIL + queue, _MAIL_INDEX + queue]
        with self._server.translated():
            raw = self._server.receive(keys=keys, args=[queue, tag, self._visibility_seconds])
        if raw == 0:
            raise _missing(queue)
        return None if raw is None else unpack_json(raw, handle=_Receipt(queue=queue, tag=tag))


class _Server:
    """The connections to one Redis; its client is thread-safe and knows of forks."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def client(self) -> Any:
        from redis import ConnectionError as ConnectionBroken
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return Redis.from_url(
            _client_url(self._url),
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_REPLY_SECONDS,
            health_check_interval=_HEALTH_CHECK_SECONDS,
            # Once, for a connection that died while it lay idle; what timed out is not worth another wait.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionBroken,)),
        )

    @cached_property
    def receive(self) -> Any:
        return self.client.register_script(_RECEIVE)

    @cached_property
    def count_deferred(self) -> Any:
        return self.client.register_script(_COUNT_DEFERRED)

    @cached_property
    def _send(self) -> Any:
        return self.client.register_script(_SEND)

    def send(self, queue: str, payload: Mapping[str, Any]) -> bool:
        return bool(self._send(keys=[_QUEUES, queue], args=[queue, json.dumps(payload)]))

    @contextmanager
    def translated(self) -> Iterator[Any]:
        """Lend the client, and turn its errors into those of this project, which name no password."""
        from redis import RedisError

        try:
            yield self.client
        except RedisError as error:
            raise BrokerUnavailable(f"Redis at {_where(self._url)} does not answer: {error}") from None

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def _client_url(url: str) -> str:
    """Return the URL as redis-py wants it: for a socket kombu says `redis+socket` and `virtual_host`."""
    return url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")


def _lists(queue: str) -> list[str]:
    """Return the lists of a queue, one for each of kombu's priorities."""
    from kombu.transport.redis import PRIORITY_STEPS, Channel

    return [f"{queue}{Channel.sep}{step}" if step else queue for step in PRIORITY_STEPS]


def _where(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path


def _missing(queue: str) -> NoSuchQueue:
    return NoSuchQueue(f"the queue {queue} does not exist at the broker")
