"""Which request queues were deleted under what runs: no broker tells it reliably, so it is asked again and again."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

from jobqueue.brokers.base import Queues
from jobqueue.errors import BrokerUnavailable

log = logging.getLogger(__name__)

# A broker that has just come back may know a queue a moment later.
NEGATIVE_ANSWERS: Final = 2


class QueueWatch:
    """Asks a broker about queues, and believes it when it says no twice in a row.

    Args:
        queues: the broker's port.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._negative: Counter[str] = Counter()

    def gone(self, names: Iterable[str]) -> set[str]:
        """Ask once about each queue, and return those that are gone; a broker that does not answer says nothing."""
        try:
            missing = {name for name in set(names) if not self._queues.exists(name)}
        except BrokerUnavailable:
            missing = set()
        self._negative = Counter({name: self._negative[name] + 1 for name in missing})
        found = {name for name, count in self._negative.items() if count >= NEGATIVE_ANSWERS}
        for name in found:
            log.warning("queue.gone", extra={"queue": name})
        return found
