"""Celery's events and remote control over Redis' publish and subscribe, for a broker that has no such thing.

What nobody listens to is lost, as it is with any broker. In a worker nothing waits for the bus: what is said goes
through a bounded queue to a thread that drops what it cannot send, and listeners come back when the bus does.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from jobqueue.brokers.redis_server import RedisServer
from jobqueue.errors import BrokerUnavailable, InvalidSetting

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]

_CHANNEL: Final = "jobqueue:bus:"
_KEPT: Final = 1000
_AGAIN_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 1.0
_LOG_EVERY_SECONDS: Final = 60.0
# For a listener to be there before what it is to hear is said.
_READY_SECONDS: Final = 2.0


class Bus:
    """What Celery's processes tell each other: events, remote control, replies.

    Args:
        url: of a Redis; empty: nothing is told.
    """

    def __init__(self, url: str) -> None:
        if url and not url.startswith(("redis://", "rediss://", "redis+socket://")):
            scheme = url.partition("://")[0]
            raise InvalidSetting(f"events cannot go over '{scheme}://…'", hint="name a Redis: JOBQUEUE_EVENTS_URL")
        self._url = url
        # Listeners have connections of their own: closing this one must not break off what they read.
        self._server = RedisServer(url) if url else None
        self._prefix = f"{_CHANNEL}{urlsplit(url).path.strip('/') or '0'}:"
        self._waiting: deque[tuple[str, str]] = deque(maxlen=_KEPT)
        self._is_waiting = threading.Event()
        self._is_closed = threading.Event()
        self._relay: threading.Thread | None = None
        self._logged_at = float("-inf")

    def __json__(self) -> str:
        """Return what `celery inspect` shows of it."""
        return "bus"

    def relay(self) -> None:
        """Never wait for the bus from now on: this process is a worker."""
        if self._relay is None:
            self._relay = threading.Thread(target=self._send_all, name="bus", daemon=True)
            self._relay.start()

    def publish(self, exchange: str, message: Mapping[str, Any]) -> None:
        """Tell whoever listens.

        Raises:
            BrokerUnavailable: the bus does not answer; not in a worker.
        """
        if self._server is None:
            return
        letter = (self._prefix + exchange, json.dumps(message))
        if self._relay is None:
            self._send(letter)
        else:
            self._waiting.append(letter)
            self._is_waiting.set()

    def listen(self, exchange: str, listener: Listener, *, until: threading.Event) -> None:
        """Call `listener` on a thread of its own with each message to `exchange`, until the event is set."""
        if self._server is None:
            return
        ready = threading.Event()
        words = (self._prefix + exchange, listener, until, ready)
        threading.Thread(target=self._hear, args=words, name=f"bus-{exchange}", daemon=True).start()
        if self._relay is None:
            ready.wait(_READY_SECONDS)

    def close(self) -> None:
        """Stop its threads, which may take a moment; what was not sent yet is lost."""
        self._is_closed.set()
        self._is_waiting.set()
        if self._relay is None:
            self._close_server()

    def _send(self, letter: tuple[str, str]) -> None:
        if self._server is not None:
            with _translated(self._server) as client:
                client.publish(*letter)

    def _send_all(self) -> None:
        while self._is_waiting.wait() and not self._is_closed.is_set():
            self._is_waiting.clear()
            while self._waiting and not self._is_closed.is_set():
                self._try(self._send, self._waiting.popleft())
        self._close_server()

    def _hear(self, channel: str, listener: Listener, until: threading.Event, ready: threading.Event) -> None:
        while not (until.is_set() or self._is_closed.is_set()):
            self._try(self._subscribe, channel, listener, until, ready)

    def _subscribe(self, channel: str, listener: Listener, until: threading.Event, ready: threading.Event) -> None:
        server = RedisServer(self._url)
        with closing(server), _translated(server) as client, client.pubsub() as pubsub:
            pubsub.subscribe(channel)
            while not (until.is_set() or self._is_closed.is_set()):
                heard = pubsub.get_message(timeout=_TICK_SECONDS)
                if heard and heard["type"] == "subscribe":
                    ready.set()
                if heard and heard["type"] == "message":
                    _tell(listener, heard["data"])

    def _try(self, act: Callable[..., None], *words: Any) -> None:
        """Do something for which the bus must be there; when it is not, wait a moment."""
        try:
            act(*words)
        except BrokerUnavailable as error:
            self._complain(error)
            self._is_closed.wait(_AGAIN_SECONDS)
        except Exception:  # the edge of a thread: what is said over the bus must not end it
            log.exception("bus.failed")
            self._is_closed.wait(_AGAIN_SECONDS)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()

    def _complain(self, error: BrokerUnavailable) -> None:
        if time.monotonic() - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("bus.unavailable", extra={"error": error.message})


@contextmanager
def _translated(server: RedisServer) -> Iterator[Any]:
    try:
        with server.translated() as client:
            yield client
    except BrokerUnavailable as error:
        hint = "Celery's events and remote control go over it; is JOBQUEUE_EVENTS_URL right, or JOBQUEUE_REGISTRY_URL?"
        raise BrokerUnavailable(error.message, hint=hint) from None


def _tell(listener: Listener, raw: bytes) -> None:
    try:
        message = json.loads(raw)
    except ValueError:
        return
    if isinstance(message, dict):
        listener(message)
