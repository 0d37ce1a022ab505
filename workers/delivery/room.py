"""What of a CPU slot's cores and memory is promised, so that what runs at once never needs more than it offers.

What does not fit now is put off and comes back; smaller work behind it is taken meanwhile. What never fits is let
through: its attempt says so with the numbers.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from celery.worker.state import active_requests, reserved_requests

from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.header import Header
from jobqueue.ids import ExperimentId
from jobqueue.resources import Offer, Resources, fits_in
from workers.bootstrap import Node
from workers.delivery.request import requeue_later
from workers.hardware.slots import CPU

log = logging.getLogger(__name__)

SOON: Final = timedelta(seconds=2)
LATEST: Final = timedelta(minutes=1)
# A backlog of work that does not fit goes round more slowly the longer it is.
_PER_ROUND: Final = 10
_A_LITTLE: Final = 1e-6


def make_room(node: Node) -> "Room | None":
    """Return the room of a CPU slot; another worker runs what it has places for."""
    if node.site.slot != CPU:
        return None
    return Room(node, taken=lambda: [request.id for request in (*active_requests, *reserved_requests)])


class Room:
    """What is left of one worker's offer. Main thread only.

    Args:
        node: the worker.
        taken: the ids of all that was handed on and has not ended.
    """

    def __init__(self, node: Node, *, taken: Callable[[], Iterable[str]]) -> None:
        self._node, self._taken = node, taken
        self._promised: dict[ExperimentId, Resources] = {}
        self._put_off = 0

    def admit(self, message: Any, header: Header) -> bool:
        """Promise what an experiment asks for, or put its message off.

        Args:
            message: the delivery.
            header: of its verified envelope.
        """
        asked, offer = header.resources, self._node.site.offer
        in_use = self._in_use()
        if not fits_in(asked, offer):
            if header.experiment_id not in in_use and _exceeds([*in_use.values(), asked], offer):
                self._defer(message, header)
                return False
            self._promised[header.experiment_id] = asked
        self._put_off //= 2
        return True

    def _in_use(self) -> Mapping[ExperimentId, Resources]:
        taken = set(self._taken())
        self._promised = {each: asked for each, asked in self._promised.items() if each in taken}
        return {**self._promised, **self._node.promised()}

    def _defer(self, message: Any, header: Header) -> None:
        delay = min(SOON * (1 + self._put_off // _PER_ROUND), LATEST)
        self._put_off += 1
        log.info("delivery.no_room", extra={"experiment": header.experiment_id, "queue": header.queue})
        try:
            self._node.site.deliveries.defer(message, queue=header.queue, delay=delay)
        except (BrokerUnavailable, NoSuchQueue) as error:
            log.warning("delivery.not_deferred", extra={"queue": header.queue, "error": error.message})
            requeue_later(message)


def _exceeds(asked: Iterable[Resources], offer: Offer) -> bool:
    together = tuple(asked)
    cpus = sum(each.cpus for each in together)
    return cpus > offer.cpus + _A_LITTLE or sum(each.memory_bytes for each in together) > offer.memory_bytes
