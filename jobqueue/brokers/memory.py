"""A broker inside one process: kombu's in-memory transport, which Celery can use too."""

import itertools
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from queue import Empty, Queue
from typing import Any, Final, cast

from jobqueue.brokers.base import Deliveries, Depth, Line, Mail, Post, QueueRecord, Queues, Seen, Survey, missing_queue
from jobqueue.brokers.copies import dead_headers, pack, repack, unpack
from jobqueue.brokers.polling import poll
from jobqueue.routing import Selection, dead_letter_queue, first_queue

_SCHEME: Final = "jobqueue-memory"
_TRANSPORT: Final = "jobqueue.brokers.memory_transport:Transport"
_TIMER: Final = "jobqueue-deferred-"
# As kombu's queues, of the whole process.
_records: Final[dict[str, QueueRecord]] = {}


class MemoryBroker:
    """The queues of this process; every broker of this kind in it sees the same ones."""

    is_pushing = False
    is_charging = False

    def __init__(self) -> None:
        self._post = MemoryPost()
        self.queues: Queues = MemoryQueues()
        self.survey: Survey = MemorySurvey()
        self.deliveries: Deliveries = MemoryDeliveries()
        self.post: Post = self._post

    def celery_settings(self) -> dict[str, Any]:
        """Return how Celery is to connect."""
        from kombu.transport import TRANSPORT_ALIASES

        TRANSPORT_ALIASES[_SCHEME] = _TRANSPORT
        return {
            "broker_url": "memory://",
            "broker_read_url": f"{_SCHEME}://",
            "broker_transport_options": {"polling_interval": 0.01},
        }

    def request_queue(self, name: str) -> Any:
        """Return the `kombu.Queue`."""
        import kombu

        return kombu.Queue(name, kombu.Exchange(""), routing_key=name, no_declare=True)

    def consumed(self, name: str) -> list[Any]:
        """Return the one `kombu.Queue`: the transport looks into what is served before it by itself."""
        return [self.request_queue(name)]

    def line(self, connection: Any) -> Line:
        """Return a way into the request queues."""
        return MemoryLine(connection)

    def close(self) -> None:
        """Give back what was received and not acknowledged."""
        self._post.close()


class MemoryLine:
    """`Line` into the queues of this process, where kombu would make those that do not exist."""

    def __init__(self, connection: Any) -> None:
        self._producer = connection.Producer()

    @contextmanager
    def confirmed(self, queues: Collection[str]) -> Iterator[Any]:
        """Lend a producer, unless a queue is missing."""
        for queue in queues:
            _find(queue)
        yield self._producer


class MemoryQueues:
    """Queues by name."""

    def create(
        self,
        queue: str,
        *,
        expires_at: datetime | None = None,
        owner: str = "",
        retention: timedelta | None = None,
    ) -> None:
        """Create a request queue and its companions; a delivery that is put off needs no queue here."""
        self.create_plain(dead_letter_queue(queue))
        self.create_plain(first_queue(queue))
        self.create_plain(queue)
        _records[queue] = QueueRecord(queue=queue, expires_at=expires_at, owner=owner, retention=retention)

    def listed(self) -> list[QueueRecord]:
        """Return the request queues of this process, by name."""
        return [_records[queue] for queue in sorted(_records)]

    def create_plain(self, queue: str) -> None:
        """Create one queue."""
        _all_queues().setdefault(queue, Queue())

    def exists(self, queue: str) -> bool:
        """Tell whether it exists."""
        return queue in _all_queues()

    def depth(self, queue: str) -> Depth:
        """Return how much lies in it and in what is served before it, and how much was put off."""
        put_off = sum(1 for thread in threading.enumerate() if thread.name == _TIMER + queue)
        return Depth(ready=_count(queue) + put_off)

    def delete(self, queue: str) -> None:
        """Delete a queue and its companions."""
        _records.pop(queue, None)
        for name in (queue, first_queue(queue), dead_letter_queue(queue)):
            _all_queues().pop(name, None)


class MemorySurvey:
    """What lies where."""

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find."""
        waiting = {queue: _count(queue) for queue in sorted(_records) if selection.finds(queue)}
        return Seen(waiting=waiting, others=tuple(sorted(_records.keys() - waiting)))

    def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        """Return how much lies in each of these queues."""
        known = MemoryQueues()
        return {queue: known.depth(queue) for queue in queues if known.exists(queue)}


class MemoryDeliveries:
    """What becomes of one delivery."""

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        """Do nothing: a delivery stays with its consumer as long as the process lives."""

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        """Put it back after `delay`."""
        payload = repack(_raw(message), queue, headers=message.headers)
        timer = threading.Timer(delay.total_seconds(), _find(queue).put, args=(payload,))
        timer.name = _TIMER + queue
        timer.daemon = True
        timer.start()
        message.ack()

    def dead_letter(self, message: Any, *, queue: str, reason: str, detail: str) -> None:
        """Put it into the dead-letter queue."""
        target = dead_letter_queue(queue)
        headers = dead_headers(message.headers, reason=reason, detail=detail)
        _find(target).put(repack(_raw(message), target, headers=headers))
        message.ack()


class MemoryPost:
    """Bytes to a named queue and back."""

    def __init__(self) -> None:
        self._unacknowledged: dict[int, tuple[str, dict[str, Any]]] = {}
        self._handles = itertools.count()

    def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send. Returns False when the queue does not exist."""
        found = _all_queues().get(queue)
        if found is not None:
            found.put(pack(queue, body, content_type=content_type, headers=headers or {}))
        return found is not None

    def receive(self, queue: str, *, timeout: timedelta) -> Mail | None:
        """Return the next message, or None after `timeout`."""
        return poll(lambda: self._fetch(queue), timeout=timeout)

    def acknowledge(self, mail: Mail) -> None:
        """Forget a received message."""
        self._unacknowledged.pop(mail.receipt(int), None)

    def give_back(self, mail: Mail) -> None:
        """Put a received message back to where it was."""
        self._give_back(mail.receipt(int))

    def close(self) -> None:
        """Put what was received and not acknowledged back to where it was."""
        for handle in sorted(self._unacknowledged, reverse=True):
            self._give_back(handle)

    def _give_back(self, handle: int) -> None:
        queue, payload = self._unacknowledged.pop(handle, ("", {}))
        found = _all_queues().get(queue)
        if found is not None:
            with found.mutex:
                found.queue.appendleft(payload)

    def _fetch(self, queue: str) -> Mail | None:
        try:
            payload = _find(queue).get_nowait()
        except Empty:
            return None
        handle = next(self._handles)
        self._unacknowledged[handle] = (queue, payload)
        return unpack(payload, handle=handle)


def _all_queues() -> "dict[str, Queue[dict[str, Any]]]":
    from kombu.transport.memory import Channel

    return cast("dict[str, Queue[dict[str, Any]]]", Channel.queues)


def _find(queue: str) -> "Queue[dict[str, Any]]":
    try:
        return _all_queues()[queue]
    except KeyError:
        raise missing_queue(queue) from None


def _count(queue: str) -> int:
    first = _all_queues().get(first_queue(queue))
    return _find(queue).qsize() + (first.qsize() if first is not None else 0)


def _raw(message: Any) -> dict[str, Any]:
    # The message as it came: kombu's own restoring reads it too.
    return cast("dict[str, Any]", message._raw)  # noqa: SLF001
