"""Putting a sealed envelope into a request queue: through Celery, confirmed by the broker, or not at all."""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.ids import ExperimentId
from producers.connections import Connections

if TYPE_CHECKING:
    from celery import Celery

# Together under the two seconds within which a user is told that the broker is away.
CONNECT: Final = timedelta(seconds=0.7)
CONFIRM: Final = timedelta(seconds=1.2)
# A network may have forgotten a connection that was idle for longer, and nobody is told.
_FRESH: Final = timedelta(seconds=30)
_IDLE_LINES: Final = 4
_NO_ROUTE: Final = 312


class _Line:
    """One connection to the broker with one Celery producer; used by one thread at a time."""

    def __init__(self, app: "Celery") -> None:
        self.pid = os.getpid()
        self.used_at = time.monotonic()
        options = {**app.conf.broker_transport_options, "max_retries": 1, "interval_start": 0, "interval_max": 0}
        self.connection = app.connection_for_write(
            connect_timeout=CONNECT.total_seconds(), transport_options=options, heartbeat=0
        )
        self.producer = app.amqp.Producer(self.connection)

    @property
    def is_fresh(self) -> bool:
        return self.pid == os.getpid() and time.monotonic() - self.used_at < _FRESH.total_seconds()

    def drop(self) -> None:
        """Close the socket without a word to a broker that may not listen."""
        with suppress(Exception):  # whatever a dead connection says, it is of no use to anybody
            self.connection.collect()


class Publisher:
    """Publishes over a few connections that stay open. Safe in threads; a forked child has its own.

    Args:
        connections: whose broker is published to.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._idle: deque[_Line] = deque()

    def publish(self, sealed: bytes, *, experiment_id: ExperimentId, queue: str) -> None:
        """Put an envelope into a request queue, and return when the broker has it for good.

        Raises:
            NoSuchQueue: the queue does not exist.
            BrokerUnavailable: the broker does not answer, or has not confirmed in time.
        """
        from kombu.exceptions import OperationalError

        began, line = time.monotonic(), self._take()
        with _translated():
            if line is not None:
                try:
                    return self._send(line, sealed, experiment_id, queue)
                except OperationalError:
                    if time.monotonic() - began > CONNECT.total_seconds():
                        raise  # it was waited for in vain: asking again would take as long
            return self._send(_Line(self._app), sealed, experiment_id, queue)

    def close(self) -> None:
        """Close the idle connections."""
        while (line := self._pop()) is not None:
            if line.pid == os.getpid():
                line.connection.release()

    @property
    def _app(self) -> "Celery":
        from jobqueue.application import make_app

        return self._connections.once("app", lambda: make_app(self._connections.settings))

    def _send(self, line: _Line, sealed: bytes, experiment_id: ExperimentId, queue: str) -> None:
        from jobqueue.application import SERIALIZER, TASK

        try:
            self._app.send_task(
                TASK,
                args=(sealed,),
                task_id=experiment_id,
                queue=self._connections.broker.request_queue(queue),
                serializer=SERIALIZER,
                argsrepr="<sealed>",
                kwargsrepr="{}",
                ignore_result=True,
                producer=line.producer,
                declare=[],
                retry=False,
                mandatory=True,
                confirm_timeout=CONFIRM.total_seconds(),
            )
        except BaseException as error:
            line.drop()  # what it still has to say would be taken for the answer to the next message
            if _is_unroutable(error):
                raise NoSuchQueue(f"there is no queue {queue!r}") from None
            raise
        line.used_at = time.monotonic()
        if len(self._idle) < _IDLE_LINES:
            self._idle.append(line)
        else:
            line.connection.release()

    def _take(self) -> _Line | None:
        while (line := self._pop()) is not None:
            if line.is_fresh:
                return line
            if line.pid == os.getpid():
                line.drop()
        return None

    def _pop(self) -> _Line | None:
        with suppress(IndexError):
            return self._idle.pop()
        return None


@contextmanager
def _translated() -> Iterator[None]:
    from kombu.exceptions import KombuError, OperationalError

    try:
        yield
    except (KombuError, OperationalError, OSError) as error:
        raise BrokerUnavailable(f"the broker did not take the message: {type(error).__name__}: {error}") from None


def _is_unroutable(error: BaseException) -> bool:
    cause: Any = error.__cause__ or error
    return _NO_ROUTE in (getattr(cause, "reply_code", None), getattr(cause, "code", None))
