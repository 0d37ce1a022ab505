"""Which request queues were created on a RabbitMQ, noted in a queue of its own that holds one message.

AMQP cannot list queues, and RabbitMQ's own expiry would delete a request queue without its companions and without
ending its experiments. Whoever reads the ledger takes the message, puts a newer one, and acknowledges the older: the
message is the lock. When somebody dies in between, several lie there, and the newest entry of each queue counts.
"""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from jobqueue.brokers.base import QueueRecord
from jobqueue.brokers.links import PERSISTENT, Link, Links
from jobqueue.brokers.queue_records import record_from_json, record_to_json
from jobqueue.errors import BrokerUnavailable

# With a dot, which no request queue has.
LEDGER: Final = "jobqueue.queues"
_UNREAD: Final = "the list of queues at RabbitMQ is in somebody else's hands, or empty"
_UNREAD_HINT: Final = (
    f"try again; if it stays so, somebody emptied {LEDGER}: `jobqueue queues create` notes queues anew"
)

_Entries = dict[str, Mapping[str, Any]]

# Until then whoever has taken the message has put another one, or is gone.
_PATIENCE: Final = timedelta(seconds=2)
_PAUSE_SECONDS: Final = 0.02
# How long it is noted that a queue was deleted, lest a stale message brings it back.
_FORGOTTEN: Final = timedelta(days=30)
_PROPERTIES: Final = {"content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": PERSISTENT}


class Ledger:
    """The records of all request queues; nothing is known before the first one was noted."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def begin(self) -> None:
        """Put the first message, so that nobody waits for one; its queue has just been declared."""
        self._links.run(lambda link: link.publish(LEDGER, b"{}", _PROPERTIES))

    def note(self, record: QueueRecord) -> None:
        """Note a queue; the ledger's own queue has been declared."""
        self._update({record.queue: _entry(record_to_json(record), is_deleted=False)})

    def forget(self, queue: str) -> None:
        """Note that a queue was deleted."""
        self._update({queue: _entry({}, is_deleted=True)})

    def records(self) -> list[QueueRecord]:
        """Return what is noted, by name.

        Raises:
            BrokerUnavailable: somebody else has the message in hand for long.
        """
        entries = self._update({})
        return [record_from_json(queue, entries[queue]) for queue in sorted(entries) if not entries[queue]["deleted"]]

    def _update(self, changes: _Entries) -> _Entries:
        def update(link: Link) -> _Entries | None:
            if link.look(LEDGER) is None:
                return {}
            taken = _take_all(link)
            if not (taken or changes):
                return None  # who takes that for no queues leaves all of them
            entries = _merge(*(_parse(message.body) for message in taken), changes)
            link.publish(LEDGER, json.dumps(entries).encode(), _PROPERTIES)
            for message in taken:
                link.channel.basic_ack(message.delivery_tag)
            return entries

        entries = self._links.run(update)
        if entries is None:
            raise BrokerUnavailable(_UNREAD, hint=_UNREAD_HINT)
        return entries


def _take_all(link: Link) -> list[Any]:
    """Take every message, waiting for one: an empty ledger is one that somebody else has in hand, or a new one."""
    until = time.monotonic() + _PATIENCE.total_seconds()
    taken: list[Any] = []
    while (message := link.channel.basic_get(LEDGER)) or not (taken or time.monotonic() > until):
        if message:
            taken.append(message)
        else:
            time.sleep(_PAUSE_SECONDS)
    return taken


def _entry(fields: Mapping[str, Any], *, is_deleted: bool) -> dict[str, Any]:
    return {**fields, "deleted": is_deleted, "noted_at": datetime.now(UTC).isoformat()}


def _parse(body: bytes | memoryview) -> _Entries:
    found: _Entries = json.loads(bytes(body))
    return found


def _merge(*tables: _Entries) -> _Entries:
    """Return the newest entry of each queue, without those of queues that were deleted long ago."""
    merged: _Entries = {}
    for table in tables:
        for queue, entry in table.items():
            if queue not in merged or entry["noted_at"] >= merged[queue]["noted_at"]:
                merged[queue] = entry
    oldest = (datetime.now(UTC) - _FORGOTTEN).isoformat()
    return {queue: entry for queue, entry in merged.items() if not entry["deleted"] or entry["noted_at"] > oldest}
