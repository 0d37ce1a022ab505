"""The connection to Redis: its URL, its time limits, its scripts, and its errors turned into ours.

Every step on the registry is one Lua script, so that it is atomic and takes one round trip. All keys begin with
`jobqueue:`; what a user of the server needs is in `examples/redis.acl`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from jobqueue.errors import InvalidSetting, RegistryUnavailable
from jobqueue.registry.redis_witness import Witness, hear
from jobqueue.registry.rules import HISTORY_LENGTH, RETENTION
from jobqueue.tls import hint_of, split_certificates
from jobqueue.unprotected import Protection, is_off

_CONNECT_SECONDS: Final = 1
_ANSWER_SECONDS: Final = 5
_HEALTH_CHECK_SECONDS: Final = 15
_RETRIES: Final = 2
_RETRY_SECONDS: Final = 0.05

Argument = str | bytes | int


class RedisClient:
    """A pool of connections that is safe in threads and after a fork.

    Args:
        url: `redis://`, `rediss://`, or `redis+socket:///path?virtual_host=N` as kombu writes it.

    Raises:
        InvalidSetting: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._pool = _make_pool(url)
        self._redis = redis.Redis(connection_pool=self._pool)
        head = _head(is_local=self._pool.connection_class is redis.UnixDomainSocketConnection)
        self._scripts = {name: self._redis.register_script(head + _source(name)) for name in _SCRIPTS}
        self._witness = Witness()

    def run(self, script: str, *arguments: Argument) -> Any:
        """Run one of the scripts beside this module and return its answer.

        Raises:
            RegistryUnavailable: Redis does not answer, or refuses.
        """
        with _translated():
            return self._scripts[script](args=arguments)

    def witness(self, script: str, *arguments: Argument) -> Any:
        """Run one of the scripts that watch the server's clock, with what is known of it, and return its answer.

        Raises:
            RegistryUnavailable: Redis does not answer, or refuses.
        """
        *heard, reply = self.run(script, *arguments, *self._witness.arguments())
        self._witness = hear(heard)
        return reply

    def ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """Send plain commands in one round trip and return their answers.

        Raises:
            RegistryUnavailable: Redis does not answer, or refuses.
        """
        with _translated(), self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            return list(pipeline.execute())

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._redis.close()
        self._pool.disconnect()


_WITNESSING: Final = ("acquire", "renew", "announce")
_SCRIPTS: Final = (
    *_WITNESSING,
    *("register", "withdraw", "cancel", "find"),
    *("advance", "release", "finish"),
    *("append", "present"),
    *("elect", "lost", "republished"),
    *("note_need", "needs"),
    "publish",
)


def _head(*, is_local: bool) -> str:
    """Return the line before every script: whether the server is on this machine, what is off, and what all go by."""
    off = ", ".join(f"{protection} = true" for protection in Protection if is_off(protection))
    retention_ms = RETENTION // timedelta(milliseconds=1)
    return (
        "local IS_LOCAL, OFF, RETENTION_MS, HISTORY_LENGTH = "
        f"{str(is_local).lower()}, {{{off}}}, {retention_ms}, {HISTORY_LENGTH}\n"
    )


@cache
def _source(name: str) -> str:
    folder = files(__package__) / "scripts"
    parts = ("prelude", "witness", name) if name in _WITNESSING else ("prelude", name)
    return "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


def _make_pool(url: str) -> redis.ConnectionPool:
    plain, files = split_certificates(url)
    try:
        pool = redis.ConnectionPool.from_url(
            _as_redis_url(plain),
            **files.options(prefix="ssl_"),
            protocol=2,  # the third one says HELLO, which an old server or a tight ACL refuses
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_ANSWER_SECONDS,
            health_check_interval=_HEALTH_CHECK_SECONDS,
            # A silent server is not asked again, or its silence would last three times as long.
            retry=Retry(ConstantBackoff(_RETRY_SECONDS), _RETRIES, supported_errors=(redis.ConnectionError,)),
        )
        pool.connection_class(**pool.connection_kwargs)  # refuses options that it does not know; opens nothing
    except (TypeError, ValueError, redis.RedisError):
        # What the parser says may quote a part of the password.
        raise InvalidSetting(
            "the registry's URL cannot be used",
            hint="write it as redis://:password@host:6379/0, with special characters of the password as %40",
        ) from None
    return pool


def _as_redis_url(url: str) -> str:
    """Rewrite kombu's spelling of a socket's address into redis-py's."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "redis+socket":
        return url
    if "virtual_host" in options:
        options["db"] = options.pop("virtual_host").strip("/")
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    return f"unix://{parts.path}?{urlencode(options)}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        told = f"the registry (Redis) does not answer as it should: {error}"
        raise RegistryUnavailable(told, hint=hint_of(error)) from error


def as_bytes(text: str) -> bytes:
    """Encode what may come from a user's program and hold what UTF-8 cannot."""
    return text.encode("utf-8", "replace")


def words(reply: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """Split a script's answer into its first word and the rest."""
    return reply[0].decode(), reply[1:]
