"""From which queues a worker takes messages now: from none while it has no place, and first from those that waited.

A broker gives each consumed queue a delivery of its own. One that comes while every place is taken would wait here,
behind a run of days, while other workers idle: it goes back at once, and its queue is not consumed until a place is
free again. When it was one that is to be served first, no queue is consumed until then, because the broker's next
delivery would otherwise be one of the others. A worker that can run nothing now, or is to drain, has no place either.
"""

import logging
from collections.abc import Callable
from typing import Any

from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import is_first_queue, served_queue
from workers.bootstrap import Node

log = logging.getLogger(__name__)


class Intake:
    """What is consumed by one consumer. Main thread only.

    Args:
        node: the worker's ports, and whether it can run anything now.
        has_place: tells whether a place is free.
    """

    def __init__(self, node: Node, *, has_place: Callable[[], bool]) -> None:
        self._node, self._has_place = node, has_place
        self._paused: dict[str, Any] = {}

    @property
    def is_open(self) -> bool:
        """Whether a message that comes now can be run."""
        return self._node.is_taking and self._has_place()

    def refuse(self, message: Any, consumers: Any) -> None:
        """Give a message back for which there is no place, and consume its queue no longer.

        Args:
            message: from one of the queues.
            consumers: kombu's consumer of all of them.
        """
        queue = str(message.delivery_info["routing_key"])
        for consumed in tuple(consumers.queues):
            if consumed.name == queue or is_first_queue(queue):
                consumers.cancel_by_queue(consumed.name)
                self._paused[consumed.name] = consumed
        log.debug("intake.paused", extra={"queue": queue})
        message.requeue()

    def forget(self, queue: str) -> None:
        """Leave a paused queue to whoever stops taking from it."""
        self._paused.pop(queue, None)

    def resume(self, consumers: Any) -> None:
        """Consume again what was paused, if a place is free; only what is to be served first, while there is any."""
        if not self._paused or not self.is_open or consumers is None:
            return
        firsts = [name for name in self._paused if is_first_queue(name)]
        others = [name for name in self._paused if not is_first_queue(name)]
        is_waiting = any(self._holds(consumed.name) for consumed in consumers.queues if is_first_queue(consumed.name))
        is_waiting = is_waiting or any(self._holds(name) for name in firsts)
        for name in firsts if is_waiting else firsts + others:
            consumers.add_queue(self._paused.pop(name))
        consumers.consume()

    def _holds(self, first: str) -> bool:
        """Tell whether something lies in a queue that is served first; the depth of another counts what was put off."""
        try:
            return self._node.broker.queues.depth(first).ready > 0
        except (BrokerUnavailable, NoSuchQueue):
            log.warning("intake.unknown_depth", extra={"queue": served_queue(first)})
            return False
