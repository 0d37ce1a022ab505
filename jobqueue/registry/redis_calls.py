"""Questions in Redis: a key for each while it is asked, a list of their names, a list for each answer."""

import time
import uuid
from datetime import timedelta
from typing import Final

from jobqueue.registry.calls import MOST_WAITING, OFFERED_AGAIN, Call
from jobqueue.registry.redis_client import RedisClient
from jobqueue.registry.redis_fields import milliseconds

_WAITING: Final = "jobqueue:calls"
_QUESTION: Final = "jobqueue:call:"
_ANSWER: Final = "jobqueue:answer:"
# Below the time after which a connection is taken for dead.
_LONGEST_WAIT_SECONDS: Final = 2.0
_KEPT: Final = timedelta(seconds=60)


class RedisCalls:
    """`Calls` over Redis; who waits, waits at the server."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def ask(self, question: bytes, *, within: timedelta) -> bytes | None:
        """Return the answer."""
        name = uuid.uuid4().hex
        ends_at = time.monotonic() + within.total_seconds()
        offered_at = float("-inf")
        while (left := ends_at - time.monotonic()) > 0:
            if time.monotonic() - offered_at >= OFFERED_AGAIN.total_seconds():
                offered_at = time.monotonic()
                self._offer(name, question, timedelta(seconds=left))
            if reply := self._pop(_ANSWER + name, left):
                return reply
        self._client.ask(("DEL", _QUESTION + name))
        return None

    def take(self, *, within: timedelta) -> Call | None:
        """Return a question."""
        ends_at = time.monotonic() + within.total_seconds()
        while (left := ends_at - time.monotonic()) > 0:
            if found := self._pop(_WAITING, left):
                name = found.decode("ascii", "replace")  # anybody with the password may have put it there
                (question,) = self._client.ask(("GET", _QUESTION + name))
                if question is not None:
                    return Call(name=name, question=question)
        return None

    def answer(self, call: Call, reply: bytes) -> None:
        """Answer a question."""
        answer = _ANSWER + call.name
        self._client.ask(
            ("RPUSH", answer, reply), ("PEXPIRE", answer, milliseconds(_KEPT)), ("DEL", _QUESTION + call.name)
        )

    def _offer(self, name: str, question: bytes, left: timedelta) -> None:
        self._client.ask(
            ("SET", _QUESTION + name, question, "PX", max(milliseconds(left), 1)),
            ("RPUSH", _WAITING, name),
            ("LTRIM", _WAITING, -MOST_WAITING, -1),
            ("PEXPIRE", _WAITING, milliseconds(_KEPT)),
        )

    def _pop(self, key: str, left_seconds: float) -> bytes | None:
        wait = max(min(left_seconds, _LONGEST_WAIT_SECONDS), 0.01)
        (found,) = self._client.ask(("BLPOP", key, f"{wait:.3f}"))
        return found[1] if found else None
