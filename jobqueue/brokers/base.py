"""What this project asks of a broker beyond what Celery asks: the ports, and the values that pass through them.

Celery publishes and consumes request messages; these ports create queues, put deliveries off, keep them alive, set
poison aside, and carry reports. Queues are created by producers and operators only, never by a worker.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from jobqueue.errors import NoSuchQueue
from jobqueue.routing import Selection

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How much lies in a queue.

    Attributes:
        ready: waiting to be delivered, deferred ones included where the broker can tell them.
        unacked: delivered and not acknowledged, and at SQS the deferred ones; None where the broker does not tell.
        consumers: who consumes it; None where the broker does not tell.
    """

    ready: int
    unacked: int | None = None
    consumers: int | None = None


@dataclass(frozen=True, kw_only=True)
class QueueRecord:
    """A request queue as it was created.

    Attributes:
        expires_at: aware; once it has passed `jobqueue queues sweep` deletes the queue when nothing needs it; None:
            never.
        owner: who it was made for, in words; empty where nobody said.
        retention: how long its dead letters are kept before the sweep removes them; None: until somebody does.
    """

    queue: str
    expires_at: datetime | None = None
    owner: str = ""
    retention: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The request queues that a broker has.

    Attributes:
        waiting: by the name of each one that was looked for, about how many messages wait in it and in what is served
            before it; None: nobody has asked yet. What was put off is not counted.
        others: the names of further ones.
    """

    waiting: Mapping[str, int | None]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mail:
    """A message of a queue that Celery does not consume: a report, a dead letter.

    Attributes:
        handle: what `Post.acknowledge` needs; opaque.
    """

    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    handle: object = None

    def receipt(self, kind: type[T]) -> T:
        """Return the handle, which is one of the adapter's own.

        Raises:
            TypeError: it is another one's.
        """
        if not isinstance(self.handle, kind):
            raise TypeError("this mail was received from another broker")
        return self.handle


def missing_queue(queue: str) -> NoSuchQueue:
    """Return the error about a queue that does not exist."""
    return NoSuchQueue(f"the queue {queue} does not exist at the broker")


class Queues(Protocol):
    """Queues by name. Raises `BrokerUnavailable` when the broker does not answer."""

    def create(
        self,
        queue: str,
        *,
        expires_at: datetime | None = None,
        owner: str = "",
        retention: timedelta | None = None,
    ) -> None:
        """Create a request queue and its companions (`_deferred`, `_dead`), and note the rest: see `QueueRecord`.

        Creating it again keeps what lies in it, and notes what is given this time.
        """
        ...

    def listed(self) -> list[QueueRecord]:
        """Return the request queues that were created here and not deleted here, by name, without companions."""
        ...

    def create_plain(self, queue: str) -> None:
        """Create one durable queue without companions: a reporting queue."""
        ...

    def exists(self, queue: str) -> bool:
        """Tell whether it exists, without creating it."""
        ...

    def depth(self, queue: str) -> Depth:
        """Return how much lies in it.

        Raises:
            NoSuchQueue: it does not exist.
        """
        ...

    def delete(self, queue: str) -> None:
        """Delete a queue with its companions and everything in them; an unknown name changes nothing."""
        ...


class Survey(Protocol):
    """What lies where, as fast as it can be told of many queues. Used by one thread at a time."""

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find now; companions and foreign queues are not there.

        Where each queue has to be asked, some are asked at each call, and the others answered for as they were last.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        ...

    def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        """Return how much lies in each of these queues, as `Queues.depth` tells it; what does not exist is left out.

        Of many, it may be what lay there some seconds ago.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        ...


class Deliveries(Protocol):
    """What becomes of one delivery. `message` is kombu's; all but `keep_alive` are called on the consuming thread.

    No method loses the message: it is acknowledged only after a confirmed copy exists, or not at all.
    They raise `BrokerUnavailable` or, where a companion of the queue is missing, `NoSuchQueue`; nothing changed then.
    """

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        """Extend the delivery where the broker can. Any thread. `properties` is kombu's `message.properties`."""
        ...

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        """Put it off: it comes back to `queue` after about `delay` (a broker may choose a shorter one)."""
        ...

    def dead_letter(self, message: Any, *, queue: str, reason: str, detail: str) -> None:
        """Set it aside in `<queue>_dead` with the reason in its headers, confirmed, then acknowledge it."""
        ...


class Post(Protocol):
    """Bytes to a named queue and back, at least once. Safe in threads."""

    def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send, confirmed by the broker. Returns False, and creates nothing, when the queue does not exist."""
        ...

    def receive(self, queue: str, *, timeout: timedelta) -> Mail | None:
        """Return the next message, unacknowledged, or None after `timeout`.

        Raises:
            NoSuchQueue: it does not exist.
        """
        ...

    def acknowledge(self, mail: Mail) -> None:
        """Remove a received message for good."""
        ...

    def give_back(self, mail: Mail) -> None:
        """Let a received message be received again at once, before what came after it where the broker keeps order."""
        ...


class Line(Protocol):
    """A way into the request queues over one kombu connection; used by one thread at a time, dropped after an error."""

    def confirmed(self, queues: Collection[str], /) -> AbstractContextManager[Any]:
        """Lend a `kombu.Producer` for some queues; when the block ends, the broker has what was published for good.

        Raises:
            NoSuchQueue: one of them does not exist; others may have been published.
            BrokerUnavailable: the broker refused one; any of them may have been published, as after kombu's own errors.
        """
        ...


class Broker(Protocol):
    """One broker: its ports, and how Celery is to use it.

    Attributes:
        is_pushing: it hands a message of each consumed queue on by itself, and not only one for each free place.
        is_charging: a consumed queue costs requests although nothing lies in it.
    """

    is_pushing: bool
    is_charging: bool
    queues: Queues
    survey: Survey
    deliveries: Deliveries
    post: Post

    def celery_settings(self) -> dict[str, Any]:
        """Return the part of Celery's configuration that depends on the broker (`broker_url`, …)."""
        ...

    def request_queue(self, name: str) -> Any:
        """Return the `kombu.Queue` to consume or publish to: it never declares anything."""
        ...

    def consumed(self, name: str) -> list[Any]:
        """Return each `kombu.Queue` through which a request queue's messages come, those served first in front."""
        ...

    def line(self, connection: Any) -> Line:
        """Return a way into the request queues over a `kombu.Connection` that was made with these settings."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
