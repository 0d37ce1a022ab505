"""What lies in the queues of an SQS, where each question is paid for: one list of names, and some depths at a time."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from jobqueue.brokers.asking import Askings
from jobqueue.brokers.base import Depth, Seen
from jobqueue.brokers.sqs_client import SqsServer
from jobqueue.brokers.sqs_queues import SqsQueues, add_depths
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import Selection, dead_letter_queue, first_queue, is_request_queue

log = logging.getLogger(__name__)

_COUNT: Final = "ApproximateNumberOfMessages"
_LONGEST_SECONDS: Final = 10.0
# What was put off there comes back to it, while the request queue itself stays empty.
_FIRST_EVERY: Final = 4
# What SQS lists is up to a minute old: few queues are asked for whether they are there or not.
_MANY: Final = 50
_AT_ONCE: Final = 12


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
        self._silent: set[str] = set()
        self._firsts: set[str] = set()
        self._empty: Counter[str] = Counter()

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find; SQS may take a minute to list a new one."""
        names = set(self._queues.names(selection.prefix))
        queues = {name for name in names if dead_letter_queue(name) in names}
        self._firsts = {first for name in queues if (first := first_queue(name)) in names}
        wanted = {name for name in queues if selection.finds(name)}
        # One alone is polled, whatever waits in it.
        asked = self._askings.next(wanted, limit=self._allowed()) if len(wanted) > 1 else []
        failures = self._ask_all(asked)
        answers = self._askings.answers(wanted)
        answered = {name for name, count in answers.items() if count is not None}
        # Where others have answered, one that never did says nothing of the server.
        if asked and len(failures) == len(asked) and not (answered and answered.isdisjoint(asked)):
            raise failures[0]
        # What has never answered is somebody else's, or gone: polling it would only keep the others waiting.
        self._silent &= wanted
        waiting = {name: count for name, count in answers.items() if name in answered or name not in self._silent}
        return Seen(waiting=waiting, others=tuple(sorted(queues - waiting.keys())))

    def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        """Return about how much lies in each of these queues; several are asked at a time."""
        names = dict.fromkeys([*queues, *map(first_queue, filter(is_request_queue, queues))])
        if len(names) > _MANY:  # to ask for each one that is missing would cost a request, too
            names = dict.fromkeys(name for name in self._queues.names() if name in names)
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            counts = dict(zip(names, pool.map(self._queues.count, names), strict=True))
        found = {queue: counts.get(queue) for queue in queues}
        return {queue: add_depths(own, counts.get(first_queue(queue))) for queue, own in found.items() if own}

    def _allowed(self) -> int:
        now = time.monotonic()
        span, self._asked_at = min(now - self._asked_at, _LONGEST_SECONDS), now
        return max(1, int(span * self._rate))

    def _ask_all(self, queues: Sequence[str]) -> list[BrokerUnavailable]:
        failures = []
        for name in queues:
            try:
                self._askings.note(name, self._ask(name))
                self._silent.discard(name)
            except NoSuchQueue:  # deleted, and listed for a while yet
                self._pass_over(name)
            except BrokerUnavailable as error:
                failures.append(error)
                if name not in self._silent:
                    log.warning("queue.not_asked", extra={"queue": name, "error": error.message})
                self._pass_over(name)
        return failures

    def _ask(self, queue: str) -> int:
        """Return what waits in a queue; of an empty one now and then what waits in the queue served before it."""
        waiting, first = self._count(queue), first_queue(queue)
        self._empty[queue] = 0 if waiting else self._empty[queue] + 1
        if waiting or first not in self._firsts or self._empty[queue] % _FIRST_EVERY:
            return waiting
        try:
            return self._count(first)
        except (BrokerUnavailable, NoSuchQueue):  # the request queue has answered
            return waiting

    def _count(self, queue: str) -> int:
        answer = self._server.on_queue("get_queue_attributes", queue, AttributeNames=[_COUNT])
        return int(answer["Attributes"].get(_COUNT, 0))

    def _pass_over(self, queue: str) -> None:
        self._silent.add(queue)
        self._askings.skip(queue)
