"""Connections to RabbitMQ that answer within a bounded time or are given up.

The library's own calls wait for ever on a server that is stopped or behind a dead network, and it raises "no such
queue" before the confirmation of the same message has come, which the next message would take for its own.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from jobqueue.errors import BrokerUnavailable
from jobqueue.tls import hint_of, split_certificates

T = TypeVar("T")

_SCHEME: Final = "jobqueue-amqp"
_TRANSPORT: Final = "jobqueue.brokers.rabbitmq_transport:Transport"
# Together under the two seconds within which a user is told.
_CONNECT_SECONDS: Final = 0.9
_REPLY_SECONDS: Final = 1.7
# For what may take a broker longer once it has answered: electing the leader of a new queue.
_PATIENT_SECONDS: Final = 15.0
_IDLE_LINKS: Final = 4
# The delivery mode of what outlives a restart.
PERSISTENT: Final = 2


class Link:
    """One connection with one confirming channel; used by one thread at a time."""

    def __init__(self, url: str, *, heartbeat_seconds: int = 0) -> None:
        self.pid = os.getpid()
        self._opened_at = time.monotonic()
        self._returned = False
        self._looks: Any = None
        self._connection = _connect(url, heartbeat_seconds)
        self._connection.transport.sock.settimeout(_REPLY_SECONDS)
        self.channel = self._connection.channel()
        self.channel.auto_decode = False
        self.channel.events["basic_return"].add(self._on_return)

    def publish(self, queue: str, body: bytes, properties: Mapping[str, Any]) -> bool:
        """Send one message and wait until the broker has it for good. Returns False when the queue does not exist."""
        from amqp import Message

        self._returned = False
        message = Message(body, **properties)
        self.channel.basic_publish(
            message, exchange="", routing_key=queue, mandatory=True, confirm_timeout=_REPLY_SECONDS
        )
        return not self._returned

    def look(self, queue: str) -> Any | None:
        """Return the broker's answer (message_count, consumer_count) about a queue; None when it does not exist."""
        from amqp.exceptions import NotFound

        if self._looks is None:
            # The broker closes the channel on which it says no, and what was received there would come back.
            self._looks = self._connection.channel()
        try:
            return self._looks.queue_declare(queue, passive=True)
        except NotFound:
            return None

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Wait longer for answers meanwhile."""
        sock = self._connection.transport.sock
        sock.settimeout(_PATIENT_SECONDS)
        yield
        sock.settimeout(_REPLY_SECONDS)

    def wait_for_age(self, age: timedelta) -> None:
        """Wait until the connection is that old, and so the broker has been up that long."""
        time.sleep(max(0.0, self._opened_at + age.total_seconds() - time.monotonic()))

    def close(self) -> None:
        """Say goodbye to the broker."""
        with suppress(*broker_errors()):
            self._connection.close()

    def drop(self) -> None:
        """Close the socket without a word to a broker that may not listen."""
        with suppress(*broker_errors()):
            self._connection.collect()

    def _on_return(self, *_: object) -> None:
        self._returned = True


class Links:
    """Idle links to one broker, each lent to one thread at a time; a forked child never touches its parent's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: deque[Link] = deque()

    def run(self, operation: Callable[[Link], T]) -> T:
        """Run `operation` on a link; once more on a new one, when an idle one turns out to have died meanwhile.

        Raises:
            BrokerUnavailable: the broker does not answer, or refuses.
        """
        with translated(self._url):
            link = self._take()
            if link is not None:
                try:
                    return self._run(link, operation)
                except TimeoutError:
                    raise
                except broker_errors():
                    self._drop_idle()
            return self._run(Link(self._url), operation)

    def close(self) -> None:
        """Close the idle links."""
        while (link := self._take()) is not None:
            link.close()

    def _run(self, link: Link, operation: Callable[[Link], T]) -> T:
        try:
            result = operation(link)
        except BaseException:
            link.drop()
            raise
        if len(self._idle) < _IDLE_LINKS:
            self._idle.append(link)
        else:
            link.close()
        return result

    def _drop_idle(self) -> None:
        while (link := self._take()) is not None:
            link.drop()

    def _take(self) -> Link | None:
        while self._idle:
            with suppress(IndexError):
                link = self._idle.pop()
                if link.pid == os.getpid():
                    return link
        return None


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn the library's errors into `BrokerUnavailable` that names the broker without its password."""
    try:
        yield
    except BrokerUnavailable:
        raise
    except broker_errors() as error:
        text = getattr(error, "reply_text", "") or str(error) or type(error).__name__
        raise BrokerUnavailable(f"RabbitMQ at {_where(url)} does not answer: {text}", hint=hint_of(error)) from None


def broker_errors() -> tuple[type[Exception], ...]:
    """Return what the library raises when a broker is away or refuses."""
    from amqp.exceptions import AMQPError, MessageNacked

    return (AMQPError, MessageNacked, OSError)


def receiving_url(url: str) -> str:
    """Return the address of the same servers for the transport that this project receives with.

    TLS is asked for beside it: see `tls_options`.
    """
    from kombu.transport import TRANSPORT_ALIASES

    TRANSPORT_ALIASES[_SCHEME] = _TRANSPORT
    return ";".join(f"{_SCHEME}://{server.partition('://')[2]}" for server in split_certificates(url)[0].split(";"))


def tls_options(url: str) -> dict[str, Any] | None:
    """Return how to check the server's certificate and name, where the URL asks for TLS."""
    import ssl

    files = split_certificates(url)[1].options()
    return {"server_hostname": None, "cert_reqs": ssl.CERT_REQUIRED, **files} if url.startswith("amqps://") else None


def _connect(url: str, heartbeat_seconds: int) -> Any:
    """Return a connection to the first server that answers of those that `url` names, separated by `;`."""
    *others, last = url.split(";")
    for server in others:
        with suppress(*broker_errors()):
            return _connect_one(server, heartbeat_seconds)
    return _connect_one(last, heartbeat_seconds)


def _connect_one(url: str, heartbeat_seconds: int) -> Any:
    from kombu import Connection

    tls, url = tls_options(url), split_certificates(url)[0]
    client = Connection(
        receiving_url(url),
        connect_timeout=_CONNECT_SECONDS,
        heartbeat=heartbeat_seconds,
        ssl=tls or False,
        transport_options={"confirm_publish": True, "client_properties": {"connection_name": "jobqueue"}},
    )
    return client.transport.establish_connection()


def _where(url: str) -> str:
    return ", ".join(urlsplit(server).netloc.rpartition("@")[2] or "127.0.0.1" for server in url.split(";"))
