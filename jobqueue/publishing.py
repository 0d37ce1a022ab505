"""Putting a sealed envelope into a request queue: through Celery, confirmed by the broker, or not at all."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from jobqueue.application import SERIALIZER, TASK
from jobqueue.brokers.base import Broker
from jobqueue.errors import BrokerUnavailable
from jobqueue.registry.base import Submission

if TYPE_CHECKING:
    from celery import Celery

# With the confirmations under the two seconds within which a user is told that the broker is away.
CONNECT: Final = timedelta(seconds=0.7)
# A network may have forgotten a connection that was idle for longer, and nobody is told.
_FRESH: Final = timedelta(seconds=30)
_IDLE: Final = 4


class _Connection:
    """One connection to the broker; used by one thread at a time."""

    def __init__(self, app: "Celery", broker: Broker) -> None:
        self.pid = os.getpid()
        self.used_at = time.monotonic()
        options = {**app.conf.broker_transport_options, "max_retries": 1, "interval_start": 0, "interval_max": 0}
        self.connection = app.connection_for_write(
            connect_timeout=CONNECT.total_seconds(), transport_options=options, heartbeat=0
        )
        self.line = broker.line(self.connection)

    @property
    def is_fresh(self) -> bool:
        return self.pid == os.getpid() and time.monotonic() - self.used_at < _FRESH.total_seconds()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what kombu and its transport raise into `BrokerUnavailable`."""
        from kombu.exceptions import KombuError

        known = (*self.connection.connection_errors, *self.connection.channel_errors)
        errors: tuple[type[BaseException], ...] = (KombuError, OSError, *known)
        try:
            yield
        except BrokerUnavailable:
            raise
        except errors as error:
            raise BrokerUnavailable(f"the broker did not take the message: {type(error).__name__}: {error}") from None

    def drop(self) -> None:
        """Close the socket without a word to a broker that may not listen."""
        with suppress(Exception):  # whatever a dead connection says, it is of no use to anybody
            self.connection.collect()


class Publisher:
    """Publishes over a few connections that stay open. Safe in threads; a forked child has its own.

    Args:
        broker: returns the broker to publish to, when it is first needed.
        app: returns the Celery application of that broker.
    """

    def __init__(self, *, broker: Callable[[], Broker], app: Callable[[], "Celery"]) -> None:
        self._broker, self._app = broker, app
        self._idle: deque[_Connection] = deque()

    def publish(self, submissions: Sequence[Submission]) -> None:
        """Put envelopes into their request queues, and return when the broker has them all for good.

        Raises:
            NoSuchQueue: a queue does not exist; others may have been published.
            BrokerUnavailable: the broker does not answer, or has not confirmed in time; any may have been published.
        """
        began, idle = time.monotonic(), self._take()
        if idle is not None:
            try:
                return self._send(idle, submissions)
            except BrokerUnavailable:
                if time.monotonic() - began > CONNECT.total_seconds():
                    raise  # it was waited for in vain: asking again would take as long
        return self._send(_Connection(self._app(), self._broker()), submissions)

    def close(self) -> None:
        """Close the idle connections."""
        while (line := self._pop()) is not None:
            if line.pid == os.getpid():
                line.connection.release()

    def _send(self, connection: _Connection, submissions: Sequence[Submission]) -> None:
        queues = {name: self._broker().request_queue(name) for name in {sent.queue for sent in submissions}}
        try:
            with connection.translated(), connection.line.confirmed(queues) as producer:
                for submission in submissions:
                    self._publish(submission, queue=queues[submission.queue], producer=producer)
        except BaseException:
            connection.drop()  # what it still has to say would be taken for the answer to the next message
            raise
        connection.used_at = time.monotonic()
        if len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            connection.connection.release()

    def _publish(self, submission: Submission, *, queue: Any, producer: Any) -> None:
        amqp = self._app().amqp  # what `send_task` does, less the result object and the search for a running parent
        message = amqp.create_task_message(
            submission.id,
            TASK,
            args=(submission.message,),
            argsrepr="<sealed>",
            kwargsrepr="{}",
            ignore_result=True,
        )
        amqp.send_task_message(
            producer,
            TASK,
            message,
            queue=queue,
            serializer=SERIALIZER,
            declare=[],
            retry=False,
            mandatory=True,
        )

    def _take(self) -> _Connection | None:
        while (line := self._pop()) is not None:
            if line.is_fresh:
                return line
            if line.pid == os.getpid():
                line.drop()
        return None

    def _pop(self) -> _Connection | None:
        with suppress(IndexError):
            return self._idle.pop()
        return None
