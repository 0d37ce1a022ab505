"""kombu's in-memory transport as workers use it: it looks into what is served before each request queue, too."""

from contextlib import suppress
from queue import Empty
from typing import Any

from kombu.transport import memory

from jobqueue.brokers.precedence import Precedence

# Its stubs know a small part of it.
_kombu: Any = memory


class Channel(_kombu.Channel):  # type: ignore[misc]  # a class, untyped
    """A channel over the queues of this process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._precedence = Precedence()

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        """Take the next message of a queue, or of what is served before it."""
        for name in self._precedence.order(queue):
            if name in self.queues:
                with suppress(Empty):
                    message = super()._get(name, timeout)
                    self._precedence.note(name)
                    return message
        raise Empty


class Transport(_kombu.Transport):  # type: ignore[misc]  # a class, untyped
    """kombu's transport over these channels."""

    Channel = Channel
