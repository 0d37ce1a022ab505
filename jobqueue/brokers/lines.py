"""Ways into the request queues: many messages go out before the first confirmation is waited for."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from jobqueue.brokers.base import missing_queue
from jobqueue.errors import BrokerUnavailable

_LARGEST_BATCH: Final = 1_000_000


class BatchLine:
    """`Line` where kombu itself sends a batch in one go, or confirms each message as it is published.

    Args:
        connection: kombu's.
        find_missing: returns which of some queues do not exist, where the broker takes a message for any name.
    """

    def __init__(
        self, connection: Any, *, find_missing: Callable[[Collection[str]], Collection[str]] = lambda _: ()
    ) -> None:
        self._producer = connection.Producer()
        self._find_missing = find_missing

    @contextmanager
    def confirmed(self, queues: Collection[str]) -> Iterator[Any]:
        """Lend a producer whose messages are sent, and answered, when the block ends."""
        with self._producer.batch(_LARGEST_BATCH):
            yield self._producer
        for queue in self._find_missing(queues):
            raise missing_queue(queue)


class ConfirmingLine:
    """`Line` of a RabbitMQ channel whose messages are numbered from one.

    Args:
        connection: kombu's.
        timeout: how long the confirmations of one block may take.
    """

    def __init__(self, connection: Any, *, timeout: timedelta) -> None:
        self._connection = connection
        self._timeout = timeout
        self._producer: Any = None
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._refused = False
        self._unroutable = ""

    @contextmanager
    def confirmed(self, _queues: Collection[str]) -> Iterator[Any]:
        """Lend a producer; wait for what the broker says to all of its messages when the block ends."""
        if self._producer is None:
            self._producer = self._connection.Producer(self._open_channel())
        yield self._producer
        self._wait()
        if self._unroutable:
            raise missing_queue(self._unroutable)
        if self._refused:
            raise BrokerUnavailable("RabbitMQ refused a message", hint="look at the limits of its queue and at its log")

    def _open_channel(self) -> Any:
        channel = self._connection.default_channel  # which connects as the settings say, and is nobody else's
        # On a connection with confirms, a channel's own method waits after each message.
        publish = type(channel).basic_publish.__get__(channel)

        def count_and_publish(*args: Any, **options: Any) -> Any:
            self._published += 1
            self._unconfirmed.add(self._published)
            return publish(*args, **options)

        channel.confirm_select()
        channel.basic_publish = count_and_publish
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        return channel

    def _wait(self) -> None:
        until = time.monotonic() + self._timeout.total_seconds()
        while self._unconfirmed:
            self._connection.drain_events(timeout=max(0.001, until - time.monotonic()))

    def _on_ack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - the library calls it
        self._unconfirmed -= {known for known in self._unconfirmed if known <= tag} if multiple else {tag}

    def _on_nack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - the library calls it
        self._refused = True
        self._on_ack(tag, multiple)

    def _on_return(self, _error: Exception, _exchange: str, queue: str, _message: Any) -> None:
        self._unroutable = queue
