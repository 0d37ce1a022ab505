"""Whether an experiment can begin on this machine now, asked before anything is done for it.

What does not fit beside what runs, or would delay who has waited longer, is put off and comes back; what fits behind it
is taken meanwhile, and another machine may take what this one has put off. What has waited for a while is taken all the
same, one of a kind at a time, and waits here, in line and under its lease: so nothing starves.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery.worker.state import active_requests, reserved_requests

from jobqueue.envelope import Verified, open_sealed
from jobqueue.errors import JobqueueError
from jobqueue.header import Header
from jobqueue.ids import ExperimentId
from jobqueue.resources import fits_in
from workers.attempt.elsewhere import is_away
from workers.attempt.ledger import Ledger
from workers.attempt.turn import describe, length_of
from workers.bootstrap import Node
from workers.delivery.returning import put_off
from workers.hardware.timetable import Entry

log = logging.getLogger(__name__)

SOON: Final = timedelta(seconds=2)
LATEST: Final = timedelta(minutes=1)
# So old, an experiment is let wait here. Several devices are free at once by chance alone, room for cores comes often.
PATIENCE: Final = timedelta(seconds=4)
PATIENCE_FOR_CORES: Final = timedelta(minutes=1)
# A backlog of work that does not fit goes round more slowly the longer it is.
_PER_ROUND: Final = 10
# Where one device is all that there is to give, whatever comes next is not much likelier to fit.
_REST: Final = timedelta(milliseconds=100)
LONGEST_REST: Final = timedelta(seconds=2)
# The workers of a machine start one by one, and one that is lost starts again: what they bring may be there soon.
SETTLES: Final = timedelta(seconds=10)
_REMEMBERED: Final = 1000
_SEVERAL: Final = 2


def make_room(node: Node) -> "Room | None":
    """Return the room of a slot; another worker runs what it has places for."""
    if node.site.ledger is None:
        return None
    ledger = node.site.ledger
    return Room(node, ledger, taken=lambda: [request.id for request in (*active_requests, *reserved_requests)])


class Room:
    """What one slot's worker lets in. Main thread only.

    Args:
        node: the worker.
        ledger: of its machine.
        taken: the ids of all that was handed on and has not ended.
        clock: now, aware.
    """

    def __init__(
        self,
        node: Node,
        ledger: Ledger,
        *,
        taken: Callable[[], Iterable[str]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._site, self._ledger, self._taken, self._clock = node.site, ledger, taken, clock
        self._promised: dict[ExperimentId, Entry] = {}
        self._refused: dict[ExperimentId, int] = {}
        self._put_off = 0
        self._offer, self._offered_since = self._site.best_offer, clock()
        self._rests_until: datetime | None = None

    @property
    def is_resting(self) -> bool:
        """Whether a worker with a device takes nothing for a moment, because what came last had to be put off."""
        return self._rests_until is not None and self._clock() < self._rests_until

    def admit(self, message: Any, verified: Verified) -> bool:
        """Let an experiment in, or put its message off.

        Args:
            message: the delivery.
            verified: its envelope.
        """
        header = verified.header
        taken = set(self._taken())
        self._promised = {each: entry for each, entry in self._promised.items() if each in taken}
        misfits = self._misfits(header)
        if misfits:
            return self._refuse(message, header, misfits)
        self._refused.pop(header.experiment_id, None)
        entry = self._ledger.ask(header.resources, seconds=float("inf"))
        if header.experiment_id not in taken:
            start = self._ledger.plan(entry, beside=tuple(self._promised.items()))
            if start is None:
                return self._put_off_lacking(message, header)
            if start.at_seconds and not self._may_begin(entry, verified):
                return self._put_off_behind(message, header)
        self._promised[header.experiment_id] = entry
        self._put_off //= 2
        return True

    def _put_off_lacking(self, message: Any, header: Header) -> bool:
        """Put off what nothing that ends here makes room for, as while a device is sick: waiting, it keeps others out.

        Whatever comes next may do with what there is, so there is no rest.
        """
        said = {"experiment": header.experiment_id, "queue": header.queue, "wants": describe(header.resources)}
        log.info("delivery.lacks", extra=said)
        self._defer_for_a_round(message, header)
        return False

    def _put_off_behind(self, message: Any, header: Header) -> bool:
        log.info("delivery.no_room", extra={"experiment": header.experiment_id, "queue": header.queue})
        self._defer_for_a_round(message, header)
        if self._site.gpus:
            self._rests_until = self._clock() + min(_REST * self._put_off, LONGEST_REST)
        return False

    def _defer_for_a_round(self, message: Any, header: Header) -> None:
        delay = min(SOON * (1 + self._put_off // _PER_ROUND), LATEST)
        self._put_off += 1
        self._defer(message, header, delay)

    def _may_begin(self, entry: Entry, verified: Verified) -> bool:
        """Tell whether something that could begin later may be let in: it ends in time, or waits here."""
        beside = tuple(self._promised.items())
        waiting = self._ledger.waiting()
        if not waiting:
            return self._may_wait(verified.header, waiting)
        # It may be over before who waits can begin; how long it lasts is sealed.
        try:
            spec = open_sealed(verified, keys=self._site.keys).spec
        except JobqueueError:
            return True  # its attempt says why
        exact = replace(entry, seconds=length_of(spec.timeout, self._site.grace))
        return self._ledger.can_start(exact, beside=beside) or self._may_wait(verified.header, waiting)

    def _may_wait(self, header: Header, waiting: Iterable[Entry]) -> bool:
        wanted = min(header.resources.gpus, _SEVERAL)
        is_old = self._clock() - header.submitted_at >= (PATIENCE if wanted else PATIENCE_FOR_CORES)
        if not is_old or is_away(self._site, header.experiment_id):
            return False
        in_line = [min(entry.resources.gpus, _SEVERAL) for entry in waiting]
        # What needs several devices is not kept from its place in line by what needs one.
        return not any(other >= wanted if wanted else not other for other in in_line)

    def _misfits(self, header: Header) -> list[str]:
        offer = self._site.best_offer
        if offer != self._offer:
            self._offer, self._offered_since = offer, self._clock()
        return fits_in(header.resources, offer)

    @property
    def _is_settling(self) -> bool:
        """Whether the devices that there are to be had may be more in a moment."""
        return bool(self._site.gpus) and self._clock() - self._offered_since < SETTLES

    def _refuse(self, message: Any, header: Header, misfits: list[str]) -> bool:
        """Put off what can never begin here; the first time its attempt does that, so that everybody is told why."""
        if header.resources.gpus and self._is_settling:
            self._defer(message, header, SOON)
            return False
        times = self._refused.pop(header.experiment_id, 0)
        self._refused[header.experiment_id] = times + 1
        if len(self._refused) > _REMEMBERED:
            del self._refused[next(iter(self._refused))]
        if not times:
            return True
        said = {"experiment": header.experiment_id, "queue": header.queue, "detail": "; ".join(misfits)}
        log.warning("delivery.does_not_fit", extra=said)
        self._defer(message, header, min(SOON * (1 << min(times, _PER_ROUND)), LATEST))
        return False

    def _defer(self, message: Any, header: Header, delay: timedelta) -> None:
        put_off(message, queue=header.queue, delay=delay, deliveries=self._site.deliveries)
