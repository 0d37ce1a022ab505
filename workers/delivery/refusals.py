"""What becomes of messages that are refused: all are counted, some are set aside, a line a second tells of each queue.

A flood of them fills neither the log nor the dead-letter queue: of what is no envelope so many letters are kept, and
what comes beyond that is dropped. So is what nobody has made a dead-letter queue for: given back, it would come again
each second for ever. An experiment whose message was dropped comes again from the registry's copy.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import dead_letter_queue
from workers.bootstrap import Node
from workers.delivery.returning import requeue_later
from workers.seldom import Seldom

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS: Final = 1.0
# So many dead letters of a request queue leave no room for further garbage, and so many are added in a second.
MOST_DEAD_LETTERS: Final = 1000
MOST_DEAD_LETTERS_A_SECOND: Final = 100
_FEW: Final = 10


@dataclass(kw_only=True)
class _Told:
    """What was said of one queue, and what was not."""

    seldom: Seldom = field(default_factory=lambda: Seldom(LOG_EVERY_SECONDS))
    event: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Room:
    """How many more dead letters of one queue there is room for, as of then."""

    at_seconds: float
    left: int


class Refusals:
    """What one worker has refused. Main thread only.

    Args:
        node: where dead letters go.
        clock: seconds that only grow.

    Attributes:
        counts: how many messages were refused, by the name of the reason.
        dropped: how many of them were neither set aside nor given back.
    """

    def __init__(self, node: Node, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped = 0
        self._node, self._clock = node, clock
        self._told: dict[str, _Told] = {}
        self._rooms: dict[str, _Room] = {}

    def drop(self, message: Any, reason: str, *, queue: str, detail: str) -> None:
        """Remove a message for good."""
        message.ack()
        self.note_dropped(reason, queue=queue, detail=detail)

    def note_dropped(self, reason: str, *, queue: str, detail: str) -> None:
        """Count what was, or is to be, removed for good."""
        self.dropped += 1
        self._count(reason, queue=queue, detail=detail)

    def set_aside(self, message: Any, reason: str, *, queue: str, detail: str) -> None:
        """Move a message to the dead-letter queue, or drop it when there is no more room.

        It is not the end of an experiment, and none is reported: whoever can write to the queue can put a stranger's
        signed envelope under headers of his own.
        """
        if self.is_full(queue):
            self.drop(message, reason, queue=queue, detail=detail)
            return
        self._count(reason, queue=queue, detail=detail)
        self._rooms[queue].left -= 1
        self.keep(message, reason, queue=queue, detail=detail)

    def keep(self, message: Any, reason: str, *, queue: str, detail: str) -> None:
        """Move a message to the dead-letter queue, however many lie there: that of an experiment which has ended."""
        try:
            self._node.site.deliveries.dead_letter(message, queue=queue, reason=reason, detail=detail)
        except NoSuchQueue:
            _tell_of_missing(queue)
            message.ack()
            self.dropped += 1
        except BrokerUnavailable as error:
            log.warning("delivery.not_set_aside", extra={"queue": queue, "error": error.message})
            requeue_later(message)

    def is_full(self, queue: str) -> bool:
        """Tell whether there is no room for another dead letter of a request queue now, or no queue for it."""
        room, now = self._rooms.get(queue), self._clock()
        if room is None or now - room.at_seconds >= 1:
            room = _Room(at_seconds=now, left=min(MOST_DEAD_LETTERS - self._there(queue), MOST_DEAD_LETTERS_A_SECOND))
            self._rooms[queue] = room
        return room.left <= 0

    def _there(self, queue: str) -> int:
        """Return how many dead letters there are; where the broker does not say, as many as leave room for a few."""
        try:
            return self._node.broker.queues.depth(dead_letter_queue(queue)).ready
        except NoSuchQueue:
            _tell_of_missing(queue)
            return MOST_DEAD_LETTERS
        except BrokerUnavailable:
            return MOST_DEAD_LETTERS - _FEW

    def tell(self, event: str, *, queue: str, detail: str, **fields: str) -> None:
        """Log a line for a queue, never the message; at most one a second, with how many were left out before it."""
        told = self._told.setdefault(queue, _Told())
        told.event, told.fields = event, {**fields, "queue": queue, "detail": detail}
        told.seldom.note()
        self._tell(told)

    def tell_rest(self) -> None:
        """Log what was left out last."""
        for told in self._told.values():
            self._tell(told)

    def _count(self, reason: str, *, queue: str, detail: str) -> None:
        self.counts[reason] += 1
        self.tell("delivery.refused", queue=queue, detail=detail, reason=reason)

    def _tell(self, told: _Told) -> None:
        if count := told.seldom.take(self._clock()):
            counts = {"count": count, "total": self.counts.total(), "dropped": self.dropped}
            log.warning(told.event, extra={**told.fields, **counts})


def _tell_of_missing(queue: str) -> None:
    hint = f"`jobqueue queues create {queue}` makes it"
    log.warning("dead_letters.no_queue", extra={"queue": dead_letter_queue(queue), "hint": hint})
