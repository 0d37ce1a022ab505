"""The connections to one Redis, with bounded waits, and the scripts that make several steps one."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from jobqueue.brokers.copies import KEPT_BYTES, LARGEST_BYTES
from jobqueue.errors import BrokerUnavailable
from jobqueue.tls import hint_of, split_certificates

# The set of the names of all queues.
QUEUES: Final = "jobqueue:queues"
# The sorted set of when each delivery that is not acknowledged was received, as kombu keeps it.
UNACKED_INDEX: Final = "jobqueue:unacked_index"
_DEFERRED: Final = "jobqueue:deferred:"
_MAIL: Final = "jobqueue:mail:"
_MAIL_INDEX: Final = "jobqueue:mail_index:"
CONNECT_SECONDS: Final = 0.9
REPLY_SECONDS: Final = 1.5
HEALTH_CHECK_SECONDS: Final = 25

_SEND: Final = """
if redis.call('sismember', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('lpush', KEYS[2], ARGV[2])
return 1
"""
# KEYS: the set of queues, and the lists of one that is removed unless it is in there.
_CLEAR_MISSING: Final = """
if redis.call('sismember', KEYS[1], KEYS[2]) == 1 then return 0 end
redis.call('del', unpack(KEYS, 2))
return 1
"""
# Takes one message from the first of some queues that holds one. KEYS: the set of queues, and for each queue its mail
# that is not acknowledged, when that comes back, and its lists. ARGV: a tag, how long others do not get it, the queues.
# Answers with the message and its queue; with neither, and the queues that do not exist.
_RECEIVE: Final = """
local clock = redis.call('time')
local now = clock[1] + clock[2] / 1000000
local width = (#KEYS - 1) / (#ARGV - 2)
local missing = {false, false}
for number = 3, #ARGV do
  local at = 2 + (number - 3) * width
  if redis.call('sismember', KEYS[1], ARGV[number]) == 0 then
    missing[#missing + 1] = ARGV[number]
  else
    for _, tag in ipairs(redis.call('zrevrangebyscore', KEYS[at + 1], now, '-inf')) do
      local mail = redis.call('hget', KEYS[at], tag)
      if mail then redis.call('rpush', KEYS[at + 2], mail) end
      redis.call('hdel', KEYS[at], tag)
      redis.call('zrem', KEYS[at + 1], tag)
    end
    for list = at + 2, at + width - 1 do
      local mail = redis.call('rpop', KEYS[list])
      if mail then
        -- cut
        redis.call('hset', KEYS[at], ARGV[1], mail)
        redis.call('zadd', KEYS[at + 1], now + ARGV[2], ARGV[1])
        return {mail, ARGV[number]}
      end
    end
  end
end
return missing
"""
_CUT: Final = f"if #mail > {LARGEST_BYTES} then mail = string.sub(mail, 1, {KEPT_BYTES}) end"
RECEIVE: Final = _RECEIVE.replace("-- cut", "")
# Of what is too large for any request, nobody receives more than the beginning.
RECEIVE_REQUEST: Final = _RECEIVE.replace("-- cut", _CUT)
# Takes some messages of one queue, not many more bytes than one may have. KEYS: its mail that is not acknowledged, when
# that comes back, and its lists. ARGV: what stands before a number in their tags, how long others do not get them, how
# many.
RECEIVE_SOME: Final = f"""
local clock = redis.call('time')
local back = clock[1] + clock[2] / 1000000 + ARGV[2]
local found, size = {{}}, 0
for list = 3, #KEYS do
  while #found < tonumber(ARGV[3]) and size < {LARGEST_BYTES} do
    local mail = redis.call('rpop', KEYS[list])
    if not mail then break end
    {_CUT}
    found[#found + 1], size = mail, size + #mail
    redis.call('hset', KEYS[1], ARGV[1] .. #found, mail)
    redis.call('zadd', KEYS[2], back, ARGV[1] .. #found)
  end
end
return found
"""
# KEYS: the mail that is not acknowledged, when it comes back, and the queue's list. Mail that is back stays as it is.
GIVE_BACK: Final = """
local mail = redis.call('hget', KEYS[1], ARGV[1])
if not mail then return 0 end
redis.call('rpush', KEYS[3], mail)
redis.call('hdel', KEYS[1], ARGV[1])
redis.call('zrem', KEYS[2], ARGV[1])
return 1
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

# KEYS: the records of the request queues. ARGV: what follows a queue's name in that of each of its lists.
_COUNT_READY: Final = """
local found = {}
for _, queue in ipairs(redis.call('hkeys', KEYS[1])) do
  local waiting = 0
  for _, ending in ipairs(ARGV) do waiting = waiting + redis.call('llen', queue .. ending) end
  found[#found + 1], found[#found + 2] = queue, waiting
end
return found
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

        plain, files = split_certificates(self._url)
        return Redis.from_url(
            _client_url(plain),
            **files.options(prefix="ssl_"),
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=REPLY_SECONDS,
            health_check_interval=HEALTH_CHECK_SECONDS,
            # Once, for a connection that died while it lay idle; what timed out is not worth another wait.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionBroken,)),
        )

    @cached_property
    def receive(self) -> Any:
        """The script that takes mail: it answers with that and its queue, or with nothing and the missing queues."""
        return self.client.register_script(RECEIVE)

    @cached_property
    def give_back(self) -> Any:
        """The script that puts mail back to where it was taken."""
        return self.client.register_script(GIVE_BACK)

    @cached_property
    def count_deferred(self) -> Any:
        """The script that counts what is still put off."""
        return self.client.register_script(_COUNT_DEFERRED)

    @cached_property
    def count_ready(self) -> Any:
        """The script that counts what waits in every request queue."""
        return self.client.register_script(_COUNT_READY)

    @cached_property
    def _send(self) -> Any:
        return self.client.register_script(_SEND)

    def send(self, queue: str, payload: Mapping[str, Any]) -> bool:
        """Lay a message into a queue. Returns False when the queue does not exist."""
        return bool(self._send(keys=[QUEUES, queue], args=[queue, json.dumps(payload)]))

    @cached_property
    def _clear_missing(self) -> Any:
        return self.client.register_script(_CLEAR_MISSING)

    def clear_missing(self, queues: Collection[str]) -> list[str]:
        """Return which queues do not exist, of which nothing is left then."""
        with self.translated():
            return [queue for queue in queues if self._clear_missing(keys=[QUEUES, *lists_of(queue)])]

    @contextmanager
    def translated(self) -> Iterator[Any]:
        """Lend the client, and turn its errors into those of this project, which name no password."""
        from redis import RedisError

        try:
            yield self.client
        except RedisError as error:
            told = f"Redis at {_where(self._url)} does not answer: {error}"
            raise BrokerUnavailable(told, hint=hint_of(error)) from None

    def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            self.client.close()


def lists_of(queue: str) -> list[str]:
    """Return the lists of a queue, one for each of kombu's priorities."""
    from kombu.transport.redis import PRIORITY_STEPS, Channel

    return [f"{queue}{Channel.sep}{step}" if step else queue for step in PRIORITY_STEPS]


def deferred_index(queue: str) -> str:
    """Return the name of the sorted set of a queue's deliveries that were put off, by when they count as received."""
    return _DEFERRED + queue


def mail_hash(queue: str) -> str:
    """Return the name of the hash of mail that was received and is not acknowledged, by tag."""
    return _MAIL + queue


def mail_index(queue: str) -> str:
    """Return the name of the sorted set of when each one of that comes back."""
    return _MAIL_INDEX + queue


def mail_keys(*queues: str) -> list[str]:
    """Return the keys of the script that takes mail from the first of these queues that holds some."""
    return [QUEUES, *(key for queue in queues for key in (mail_hash(queue), mail_index(queue), *lists_of(queue)))]


def _client_url(url: str) -> str:
    """Return the URL as redis-py wants it: for a socket kombu says `redis+socket` and `virtual_host`."""
    return url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")


def _where(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path
