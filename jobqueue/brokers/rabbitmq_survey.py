"""What lies in the queues of a RabbitMQ: by its HTTP API where that answers, else queue by queue from the ledger."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from jobqueue.brokers.asking import Askings
from jobqueue.brokers.base import Depth, QueueRecord, Seen
from jobqueue.brokers.links import Link, Links
from jobqueue.brokers.rabbitmq_management import Management
from jobqueue.errors import BrokerUnavailable
from jobqueue.routing import (
    DEFERRED,
    FIRST,
    Selection,
    dead_letter_queue,
    deferred_queue,
    first_queue,
    is_request_queue,
)

log = logging.getLogger(__name__)

# How long the HTTP API is left alone after it has not answered.
_SILENCE_SECONDS: Final = 60.0
# Who reads the ledger has its one message in hand, and nobody else: it is read at one of so many looks.
_LISTED_LOOKS: Final = 10
_HINT: Final = "set JOBQUEUE_MANAGEMENT_URL, and give its user the tag `monitoring` or `management`"
# A passive declaration costs a fifth of a millisecond.
_ASKED_AT_ONCE: Final = 100
# More than that are not looked at one by one where the HTTP API answers.
_MANY: Final = 100


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
        self._is_silent = False
        self._names: list[str] = []
        self._looks = 0
        self._gone: set[str] = set()

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find."""
        counts = self._ask_management()
        if counts is None:
            return self._ask_each(selection)
        # Every request queue was made with a companion for its dead letters; a foreign one has none.
        queues = [name for name in counts if dead_letter_queue(name) in counts]
        waiting = {name: counts[name] + counts.get(first_queue(name), 0) for name in queues if selection.finds(name)}
        return Seen(waiting=waiting, others=tuple(sorted(name for name in queues if name not in waiting)))

    def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        """Return how much lies in each of these queues: of few now, of many as the HTTP API told some seconds ago."""
        counts = self._ask_management() if len(queues) > _MANY else None
        if counts is None:
            return self._links.run(lambda link: look_at_all(link, queues))
        put_off = {name: sum(counts.get(of(name), 0) for of in (first_queue, deferred_queue)) for name in queues}
        return {name: Depth(ready=counts[name] + put_off[name]) for name in queues if name in counts}

    def _ask_management(self) -> Mapping[str, int] | None:
        if time.monotonic() < self._silent_until:
            return None
        try:
            counts = self._management.waiting()
        except BrokerUnavailable as error:
            self._silent_until = time.monotonic() + _SILENCE_SECONDS
            if not self._is_silent:
                instead = f"each queue is asked, and new ones are looked for at every {_LISTED_LOOKS}th look"
                log.warning("management.unavailable", extra={"error": error.message, "instead": instead, "hint": _HINT})
            self._is_silent = True
            return None
        self._is_silent = False
        return counts

    def _list(self) -> list[str]:
        if self._looks % _LISTED_LOOKS == 0:
            self._names = [record.queue for record in self._listed()]
        self._looks += 1
        return self._names

    def _ask_each(self, selection: Selection) -> Seen:
        names = self._list()
        wanted = [name for name in names if selection.finds(name)]
        answers = self._askings.answers(wanted)
        new = sum(waiting is None and name not in self._gone for name, waiting in answers.items())
        asked = self._askings.next(wanted, limit=max(new, _ASKED_AT_ONCE))

        def look(link: Link) -> None:
            for name in asked:
                own, first = link.look(name), link.look(first_queue(name))
                if own is None:  # somebody deleted it without telling the ledger
                    self._gone.add(name)
                    self._askings.skip(name)
                else:
                    self._gone.discard(name)
                    self._askings.note(name, own.message_count + (first.message_count if first else 0))

        self._links.run(look)
        self._gone.intersection_update(wanted)
        waiting = self._askings.answers(wanted)
        return Seen(
            waiting={name: count for name, count in waiting.items() if name not in self._gone},
            others=tuple(name for name in names if name not in wanted),
        )


def look_at_all(link: Link, queues: Collection[str]) -> dict[str, Depth]:
    """Return the depths of queues, each looked at once; what goes ahead and what was put off counts, too."""
    names = dict.fromkeys(name for queue in queues for name in (queue, first_queue(queue), deferred_queue(queue)))
    found = {name: seen for name in names if _may_exist(name) and (seen := link.look(name)) is not None}

    def count(name: str) -> int:
        return found[name].message_count if name in found else 0

    return {
        queue: Depth(
            ready=count(queue) + count(first_queue(queue)) + count(deferred_queue(queue)),
            consumers=found[queue].consumer_count,
        )
        for queue in queues
        if queue in found
    }


def _may_exist(name: str) -> bool:
    """Tell whether there may be such a queue: a companion has none, and to ask for a missing one costs a channel."""
    return not name.endswith((FIRST, DEFERRED)) or is_request_queue(name.removesuffix(FIRST).removesuffix(DEFERRED))
