"""How often a sender is told that a message of its is refused: an answer must be no tool for a flood."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from jobqueue.lifecycle import Reason

log = logging.getLogger(__name__)

_REFUSALS: Final = frozenset({Reason.BAD_ENVELOPE, Reason.UNDECRYPTABLE, Reason.BAD_SPEC})
MOST: Final = 10
WITHIN: Final = timedelta(minutes=1)
# With the signature and the sealing around it, an answer stays below 4 KiB.
SENTENCE_BYTES: Final = 2000
_SENDERS: Final = 1000


class Answers:
    """Counts what each sender was answered of late. Safe in threads.

    Args:
        clock: seconds that only grow.

    Attributes:
        withheld: how many answers were not given.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.withheld = 0
        self._clock = clock
        self._given: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def may_tell(self, reason: Reason, sender_key_id: str) -> bool:
        """Tell whether an end is to be reported; of a refusal that is asked once, and counted.

        Who is not trusted is never answered, and a trusted sender so often a minute.
        """
        if reason is Reason.UNTRUSTED:
            return False
        return reason not in _REFUSALS or self._admit(sender_key_id)

    def _admit(self, sender_key_id: str) -> bool:
        with self._lock:
            now = self._clock()
            given = self._given.setdefault(sender_key_id, deque(maxlen=MOST))
            self._given.move_to_end(sender_key_id)
            if len(self._given) > _SENDERS:
                self._given.popitem(last=False)
            if len(given) == MOST and now - given[0] < WITHIN.total_seconds():
                self.withheld += 1
                log.info("reports.withheld", extra={"sender": sender_key_id, "total": self.withheld})
                return False
            given.append(now)
            return True


def shorten(sentence: str) -> str:
    """Return as much of a sentence as an answer has room for."""
    content = sentence.encode(errors="replace")
    if len(content) <= SENTENCE_BYTES:
        return sentence
    return content[:SENTENCE_BYTES].decode(errors="ignore") + "…"
