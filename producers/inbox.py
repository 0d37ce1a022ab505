"""Reports as they come in from reporting queues; what is no report, or not a trusted node's, never stops anybody.

Anyone who may write to the broker can put bytes into a reporting queue, and as many as he likes.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Broker, Mail
from jobqueue.brokers.copies import dead_headers
from jobqueue.errors import Refused
from jobqueue.keys import KeyRing
from jobqueue.printable import plain
from jobqueue.report import Report
from jobqueue.routing import dead_letter_queue, reported_queue
from jobqueue.sealed_report import open_report

_log = logging.getLogger(__name__)

_PAUSE: Final = timedelta(milliseconds=200)
_REFUSED: Final = "BAD_REPORT"
_TELL_EVERY_SECONDS: Final = 1.0
_KEEP_EVERY_SECONDS: Final = 1.0


class Inbox:
    """The reports of some reporting queues, in each queue's order.

    Iterating waits for ever, until `stop` is set. A report is acknowledged when the next one is asked for; one whose
    loop body has not come to its end is the first of the next iteration.

    Args:
        broker: where the queues are.
        queues: names of reporting queues.
        keys: which nodes are trusted, and what sealed reports are opened with.
        stop: set from any thread to end the iteration soon.
        on_refused: told about what was refused, in one sentence, once a second at most.

    Attributes:
        refused: how many messages were refused, by the code of the error.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        *,
        keys: KeyRing,
        stop: threading.Event | None = None,
        on_refused: Callable[[str], object] = _log.warning,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._keys = keys
        self._stop = stop or threading.Event()
        self._on_refused = on_refused
        self._unfinished: tuple[str, Mail] | None = None
        self._told_at = self._kept_at = float("-inf")
        self._untold = 0
        self.refused: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Report]:
        """Wait for reports.

        Raises:
            BrokerUnavailable: iterate again later; nothing was lost.
            NoSuchQueue: one of the queues does not exist.
            KeyRefused: a key file here is not to be used; nothing was lost.
        """
        if self._unfinished is not None:
            yield from self._read(*self._unfinished)
        while not self._stop.is_set():
            found = False
            for queue in self._queues:
                if self._stop.is_set():
                    return
                # None of several queues may hold the others up.
                mail = self._broker.post.receive(queue, timeout=timedelta())
                if mail is not None:
                    found = True
                    yield from self._read(queue, mail)
            if not found:
                self._tell_rest()
                self._stop.wait(_PAUSE.total_seconds())

    def _read(self, queue: str, mail: Mail) -> Iterator[Report]:
        self._unfinished = (queue, mail)
        try:
            report = open_report(
                mail.body, content_type=mail.content_type, queue=reported_queue(queue), keys=self._keys
            )
        except Refused as refusal:
            self._refuse(queue, mail, refusal)
        else:
            yield report
        self._unfinished = None
        self._broker.post.acknowledge(mail)

    def _refuse(self, queue: str, mail: Mail, refusal: Refused) -> None:
        self.refused[refusal.code] += 1
        self._untold += 1
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_SECONDS:
            self._tell(f"{len(mail.body)} bytes in {queue} are refused: {refusal}")
        # Kept only where somebody has made a queue for them, and not all: a flood of rubbish must not fill the broker.
        if now - self._kept_at >= _KEEP_EVERY_SECONDS:
            self._kept_at = now
            headers = dead_headers(mail.headers, reason=_REFUSED, detail=refusal.message)
            self._broker.post.send(dead_letter_queue(queue), mail.body, content_type=mail.content_type, headers=headers)

    def _tell_rest(self) -> None:
        """Tell how many more were refused than was said, now that there is time."""
        if self._untold and time.monotonic() - self._told_at >= _TELL_EVERY_SECONDS:
            self._tell(f"{self._untold} more messages were refused")

    def _tell(self, sentence: str) -> None:
        self._told_at = time.monotonic()
        self._untold = 0
        # In it are names that anybody has written.
        self._on_refused(f"{plain(sentence)} ({self.refused.total()} in all)")
