"""The connections to one Redis, with bounded waits, and the scripts that make several steps one."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from jobqueue.errors import BrokerUnavailable

# The set of the names of all queues.
QUEUES: Final = "jobqueue:queues"
CONNECT_SECONDS: Final = 0.9
REPLY_SECONDS: Final = 1.5
HEALTH_CHECK_SECONDS: Final = 25

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


class RedisServer:
    """The connections to one Redis; its client is thread-safe and knows of forks."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def client(self) -> Any:
        """The client; it connects at its first command."""
        from redis import ConnectionError as ConnectionBroken
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return Redis.from_url(
            _client_url(self._url),
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=REPLY_SECONDS,
            health_check_interval=HEALTH_CHECK_SECONDS,
            # Once, for a connection that died while it lay idle; what timed out is not worth another wait.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionBroken,)),
        )

    @cached_property
    def receive(self) -> Any:
        """The script that takes mail: None when there is none, 0 when there is no such queue."""
        return self.client.register_script(_RECEIVE)

    @cached_property
    def count_deferred(self) -> Any:
        """The script that counts what is still put off."""
        return self.client.register_script(_COUNT_DEFERRED)

    @cached_property
    def _send(self) -> Any:
        return self.client.register_script(_SEND)

    def send(self, queue: str, payload: Mapping[str, Any]) -> bool:
        """Lay a message into a queue. Returns False when the queue does not exist."""
        return bool(self._send(keys=[QUEUES, queue], args=[queue, json.dumps(payload)]))

    @contextmanager
    def translated(self) -> Iterator[Any]:
        """Lend the client, and turn its errors into those of this project, which name no password."""
        from redis import RedisError

        try:
            yield self.client
        except RedisError as error:
            raise BrokerUnavailable(f"Redis at {_where(self._url)} does not answer: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            self.client.close()


def _client_url(url: str) -> str:
    """Return the URL as redis-py wants it: for a socket kombu says `redis+socket` and `virtual_host`."""
    return url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")


def _where(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path
