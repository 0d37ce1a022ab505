"""What lies in the queues of an SQS, where each question is paid for: one list of names, and some depths at a time."""

import time
from typing import Final

from jobqueue.brokers.asking import Askings
from jobqueue.brokers.base import Seen
from jobqueue.brokers.sqs_client import SqsServer
from jobqueue.brokers.sqs_queues import SqsQueues
from jobqueue.errors import NoSuchQueue
from jobqueue.routing import Selection, dead_letter_queue

_COUNT: Final = "ApproximateNumberOfMessages"
_LONGEST_SECONDS: Final = 10.0


class SqsSurvey:
    """What lies where.

    Args:
        server: whom it asks.
        queues: lists their names.
        asks_per_second: how many queues may be asked in one second.
    """

    def __init__(self, server: SqsServer, queues: SqsQueues, *, asks_per_second: float) -> None:
        self._server, self._queues = server, queues
        self._rate = asks_per_second
        self._askings = Askings()
        self._asked_at = float("-inf")

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find; SQS may take a minute to list a new one."""
        names = set(self._queues.names(selection.prefix))
        queues = {name for name in names if dead_letter_queue(name) in names}
        wanted = {name for name in queues if selection.finds(name)}
        # One alone is polled, whatever waits in it.
        asked = self._askings.next(wanted, limit=self._allowed()) if len(wanted) > 1 else []
        for name in asked:
            self._ask(name)
        return Seen(waiting=self._askings.answers(wanted), others=tuple(sorted(queues - wanted)))

    def _allowed(self) -> int:
        now = time.monotonic()
        span, self._asked_at = min(now - self._asked_at, _LONGEST_SECONDS), now
        return max(1, int(span * self._rate))

    def _ask(self, queue: str) -> None:
        try:
            answer = self._server.on_queue("get_queue_attributes", queue, AttributeNames=[_COUNT])
        except NoSuchQueue:
            return  # deleted, and listed for a while yet
        self._askings.note(queue, int(answer["Attributes"].get(_COUNT, 0)))
