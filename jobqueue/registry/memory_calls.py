"""Questions in memory."""

import threading
import time
import uuid
from collections import deque
from datetime import timedelta

from jobqueue.registry.calls import MOST_WAITING, Call


class MemoryCalls:
    """`Calls` in memory; nothing is lost here, so nothing is offered again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Call] = deque(maxlen=MOST_WAITING)
        self._answers: dict[str, bytes | None] = {}

    def ask(self, question: bytes, *, within: timedelta) -> bytes | None:
        """Return the answer."""
        call = Call(name=uuid.uuid4().hex, question=question)
        with self._changed:
            self._answers[call.name] = None
            self._waiting.append(call)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answers[call.name] is not None, within.total_seconds())
            return self._answers.pop(call.name)

    def take(self, *, within: timedelta) -> Call | None:
        """Return a question."""
        ends_at = time.monotonic() + within.total_seconds()
        with self._changed:
            while self._changed.wait_for(lambda: bool(self._waiting), ends_at - time.monotonic()):
                call = self._waiting.popleft()
                if call.name in self._answers:
                    return call
            return None

    def answer(self, call: Call, reply: bytes) -> None:
        """Answer a question."""
        with self._changed:
            if self._answers.get(call.name, reply) is None:
                self._answers[call.name] = reply
            self._changed.notify_all()
