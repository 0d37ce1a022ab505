"""What lies in the queues of a RabbitMQ: by its HTTP API where that answers, else queue by queue from the ledger."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from jobqueue.brokers.asking import Askings
from jobqueue.brokers.base import QueueRecord, Seen
from jobqueue.brokers.links import Link, Links
from jobqueue.brokers.rabbitmq_management import Management
from jobqueue.errors import BrokerUnavailable
from jobqueue.routing import Selection, dead_letter_queue, first_queue

log = logging.getLogger(__name__)

# How long the HTTP API is left alone after it has not answered.
_SILENCE_SECONDS: Final = 60.0
# A passive declaration costs a fifth of a millisecond.
_ASKED_AT_ONCE: Final = 100


class RabbitSurvey:
    """What lies where.

    Args:
        management: the HTTP API.
        links: to ask queue by queue.
        listed: returns the request queues that were created.
    """

    def __init__(self, management: Management, links: Links, *, listed: Callable[[], Sequence[QueueRecord]]) -> None:
        self._management, self._links, self._listed = management, links, listed
        self._askings = Askings()
        self._silent_until = float("-inf")
        self._is_silent: bool | None = None

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find."""
        counts = self._ask_management()
        if counts is None:
            return self._ask_each(selection)
        # Every request queue was made with a companion for its dead letters; a foreign one has none.
        queues = [name for name in counts if dead_letter_queue(name) in counts]
        waiting = {name: counts[name] + counts.get(first_queue(name), 0) for name in queues if selection.finds(name)}
        return Seen(waiting=waiting, others=tuple(sorted(name for name in queues if name not in waiting)))

    def _ask_management(self) -> Mapping[str, int] | None:
        if time.monotonic() < self._silent_until:
            return None
        try:
            counts = self._management.waiting()
        except BrokerUnavailable as error:
            self._silent_until = time.monotonic() + _SILENCE_SECONDS
            if not self._is_silent:
                log.info("management.unavailable", extra={"error": error.message, "instead": "each queue is asked"})
            self._is_silent = True
            return None
        self._is_silent = False
        return counts

    def _ask_each(self, selection: Selection) -> Seen:
        names = [record.queue for record in self._listed()]
        wanted = [name for name in names if selection.finds(name)]
        new = sum(waiting is None for waiting in self._askings.answers(wanted).values())
        asked = self._askings.next(wanted, limit=max(new, _ASKED_AT_ONCE))

        def look(link: Link) -> set[str]:
            gone = set()
            for name in asked:
                own, first = link.look(name), link.look(first_queue(name))
                if own is None:
                    gone.add(name)  # somebody deleted it without telling the ledger
                else:
                    self._askings.note(name, own.message_count + (first.message_count if first else 0))
            return gone

        gone = self._links.run(look)
        waiting = self._askings.answers([name for name in wanted if name not in gone])
        return Seen(waiting=waiting, others=tuple(name for name in names if name not in wanted))
