"""From which queues a worker takes messages now: from none while it has no place, and in turns while it has one.

A broker that pushes gives each consumed queue a delivery of its own. One that comes while every place is taken would
wait here, behind a run of days, while other workers idle: it goes back at once, and its queue is not consumed until a
place is free again. Where a worker listens at several queues, none is consumed while every place is taken, and when
one is free again the queue that was served longest ago goes first. A broker that is asked for each message keeps such
turns by itself. Within a request queue, what has waited once already goes first, and so does what is `fast`, but not
for ever: see `Precedence`. A worker that can run nothing now, or is to drain, has no place either.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from jobqueue.brokers.precedence import Precedence
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import first_queue, is_first_queue, served_queue
from workers.bootstrap import Node
from workers.delivery.absent import Absent
from workers.delivery.gate import queue_of
from workers.delivery.turns import Turns, choose
from workers.rounds import TELL_EVERY_SECONDS
from workers.seldom import Seldom

log = logging.getLogger(__name__)

# So long after the last message that was refused more of that may come; the broker may be slow to answer.
FLOOD_SECONDS: Final = 1.0
# So long what lies behind it has its turn at a stretch: somebody may see to it that a flood never ends.
LONGEST_TURN_SECONDS: Final = 10.0


class Intake:
    """What is consumed over one connection. Main thread only.

    Args:
        node: the worker's ports, and whether it can run anything now.
        queues: Celery's: what it consumes once it has connected.
        has_place: tells whether a place is free.
        turns: the order in which request queues were served, over all connections.
        absent: which of those that were named are not there.
        stopped: the request queues that an operator has stopped.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        node: Node,
        *,
        queues: Any,
        has_place: Callable[[], bool],
        turns: Turns,
        absent: Absent,
        stopped: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._queues, self._has_place = node, queues, has_place
        self._turns, self._absent, self._stopped, self._clock = turns, absent, stopped, clock
        self._source: object = None
        self._named: Collection[str] = ()
        self._closed: Collection[str] = ()
        self._waiting: dict[str, int | None] = {}
        self._precedence = Precedence()
        self._flooded_until: dict[str, float] = {}
        self._behind_since: dict[str, float] = {}
        self._listened: set[str] = set()
        self._lacking: set[str] = set()
        self._paused: dict[str, Any] = {}
        self._silence = Seldom(TELL_EVERY_SECONDS)

    @property
    def is_open(self) -> bool:
        """Whether a message that comes now can be run."""
        return self._node.is_taking and self._has_place()

    def learn(
        self, named: Collection[str], found: Mapping[str, int | None], *, closed: Collection[str] = frozenset()
    ) -> None:
        """Learn which request queues may be served.

        Args:
            named: those that are listened at whenever they are there.
            found: how many messages wait in each of the others, as far as it is known; a new mapping is news.
            closed: those from which nothing is to be taken for now, on all nodes.
        """
        self._named, self._closed = named, closed
        if found is not self._source:
            self._source, self._waiting = found, dict(found)

    def begin(self) -> None:
        """Choose what a new connection consumes."""
        self._queues.select(list(self._queues))
        self._queues.deselect(list(self._queues))
        try:
            for name in self._choose():
                self._listen(name)
        except BrokerUnavailable as error:
            self._tell_of_silence(error)

    def rearrange(self, consumers: Any) -> bool:
        """Listen at the queues whose turn it is; tells whether others wait for what comes of that.

        Args:
            consumers: kombu's consumer of all queues; None while there is none.
        """
        if consumers is None:
            return False
        chosen = self._choose()
        for name in self._listened.difference(chosen):
            self._leave(name, consumers)
        # Each question to a broker that is silent takes seconds: after the first one nothing more is asked for now.
        try:
            self._listen_at_new(chosen)
            self._listen_at_late()
            following = self._next(consumers) if self._paused and self.is_open else []
            gone = self._gone(following)
        except BrokerUnavailable as error:
            self._tell_of_silence(error)
            return False
        for name in gone:
            self._leave(name, consumers)
        return self._resume([name for name in following if name in self._paused], consumers)

    def refuse(self, message: Any, consumers: Any) -> None:
        """Give a message back for which there is no place, and consume its queue no longer.

        Args:
            message: from one of the queues.
            consumers: kombu's consumer of all of them.
        """
        queue = queue_of(message)
        self._pause(queue, consumers)
        log.debug("intake.paused", extra={"queue": queue})
        message.requeue()

    def took(self, source: str, consumers: Any) -> None:
        """Note that a message from a consumed queue was handed on; with the last place, consume nothing more."""
        queue = served_queue(source)
        self._turns.note(queue)
        self._precedence.note(source)
        self._behind_since.pop(queue, None)
        if not self._node.broker.is_pushing:
            return
        if len(self._listened) > 1 and not self._has_place():
            for name in tuple(self._listened):
                self._pause(name, consumers)
        elif self._precedence.is_others_turn(queue) or (source == queue and first_queue(queue) in self._paused):
            self._pause(queue, consumers)  # or the broker would go on with the same one
            self.rearrange(consumers)

    def passed_over(self, source: str) -> None:
        """Note that a message from a consumed queue was refused: its turn is not over, unless it went ahead."""
        self._precedence.note_refused(source)
        self._flooded_until[source] = self._clock() + FLOOD_SECONDS

    def put_off(self, source: str) -> None:
        """Note that a message from a consumed queue had its turn, and is to come back later."""
        self._precedence.note(source)
        self._behind_since.pop(served_queue(source), None)

    def _choose(self) -> list[str]:
        known = {**self._waiting, **dict.fromkeys(self._named)}
        barred = {*self._stopped, *self._closed}
        waiting = {name: count for name, count in known.items() if name not in barred}
        return choose(waiting, turns=self._turns, named=self._named, is_charging=self._node.broker.is_charging)

    def _listen_at_new(self, chosen: Collection[str]) -> None:
        for name in chosen:
            if name not in self._listened and (consumed := self._listen(name)):
                log.log(logging.INFO if name in self._named else logging.DEBUG, "queue.found", extra={"queue": name})
                self._paused |= {each.name: each for each in consumed}

    def _listen_at_late(self) -> None:
        """Consume companions that were made after their queue was found."""
        for name in self._listened if self._lacking else ():
            for each in self._node.broker.consumed(name):
                if each.name in self._lacking and self._look_for(each.name):
                    self._lacking.discard(each.name)
                    self._paused[each.name] = self._queues.select_add(each)

    def _listen(self, name: str) -> list[Any]:
        """Have Celery know what a request queue is consumed through; nothing when it is not there."""
        if not self._exists(name):
            return []
        through = self._node.broker.consumed(name)
        # Who made a queue by other means may have made no companions, or make them later.
        self._lacking |= {each.name for each in through if each.name != name and not self._look_for(each.name)}
        self._listened.add(name)
        return [self._queues.select_add(each) for each in through if each.name not in self._lacking]

    def _leave(self, name: str, consumers: Any) -> None:
        log.debug("queue.left", extra={"queue": name})
        self._pause(name, consumers)
        self._listened.discard(name)
        self._lacking -= {each for each in self._lacking if served_queue(each) == name}
        self._paused = {each: queue for each, queue in self._paused.items() if served_queue(each) != name}
        self._queues.deselect([each.name for each in self._node.broker.consumed(name)])

    def _exists(self, name: str) -> bool:
        return self._look_for(name) if name in self._named else self._node.broker.queues.exists(name)

    def _look_for(self, name: str) -> bool:
        """Tell whether a queue is there; one that was not is asked for now and then only, and missing in between."""
        if not self._absent.is_due(name):
            return False
        is_there = self._node.broker.queues.exists(name)
        self._absent.note(name, is_there=is_there)
        return is_there

    def _gone(self, paused: Collection[str]) -> set[str]:
        """Return which request queues were deleted meanwhile; to consume one would end all consumers of the channel."""
        if not self._node.broker.is_pushing:
            return set()
        return {queue for queue in {served_queue(name) for name in paused} if not self._exists(queue)}

    def _pause(self, queue: str, consumers: Any) -> None:
        for consumed in tuple(consumers.queues):
            if served_queue(consumed.name) == queue:
                consumers.cancel_by_queue(consumed.name)
                self._paused[consumed.name] = consumed

    def _resume(self, names: Collection[str], consumers: Any) -> bool:
        for name in names:
            consumers.add_queue(self._paused.pop(name))
        if names:
            consumers.consume()
        return bool(self._paused) and self.is_open

    def _next(self, consumers: Any) -> list[str]:
        """Return what to consume again: of the first queue in turn that holds something; all, when none does."""
        if not self._node.broker.is_pushing:
            return list(self._paused)
        there = {consumed.name for consumed in consumers.queues} | set(self._paused)
        paused = self._turns.order({served_queue(name) for name in self._paused})
        waiting = set(self._paused)
        for queue in paused:
            own, first = [name for name in self._paused if served_queue(name) == queue], first_queue(queue)
            if self._precedence.is_others_turn(queue):
                if queue in own:
                    return [queue]
                if self._is_behind_flood(queue):
                    waiting.discard(first)
                    continue
                self._precedence.note(queue)
            if first in there and self._holds(first):
                return [name for name in own if is_first_queue(name)]
            if len(paused) > 1 and self._holds(queue):
                return own
            self._waiting.update({queue: 0} if queue in self._waiting and len(paused) > 1 else {})
        return [name for name in self._paused if name in waiting]

    def _is_behind_flood(self, queue: str) -> bool:
        """Tell whether what has its turn may still lie behind a flood."""
        now = self._clock()
        since = self._behind_since.setdefault(queue, now)
        if now < min(self._flooded_until.get(queue, 0.0), since + LONGEST_TURN_SECONDS):
            return True
        del self._behind_since[queue]
        return False

    def _holds(self, queue: str) -> bool:
        """Tell whether something lies in a queue; for a request queue, what was put off counts too."""
        try:
            return self._node.broker.queues.depth(queue).ready > 0
        except NoSuchQueue:
            return False

    def _tell_of_silence(self, error: BrokerUnavailable) -> None:
        self._silence.note()
        if count := self._silence.take(self._clock()):
            log.warning("intake.broker_unavailable", extra={"error": error.message, "count": count})
