"""Reports as they come in from reporting queues; what is no report is set aside and never stops anybody.

Anyone who may write to the broker can put bytes into a reporting queue.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Broker, Mail
from jobqueue.brokers.copies import dead_headers
from jobqueue.errors import Refused
from jobqueue.report import Report
from jobqueue.routing import dead_letter_queue

_log = logging.getLogger(__name__)

_PAUSE: Final = timedelta(milliseconds=200)
_REFUSED: Final = "BAD_REPORT"


class Inbox:
    """The reports of some reporting queues, in each queue's order.

    Iterating waits for ever, until `stop` is set. A report is acknowledged when the next one is asked for; one whose
    loop body has not come to its end is the first of the next iteration.

    Args:
        broker: where the queues are.
        queues: names of reporting queues.
        decode: bytes to a report; raises `Refused` for what is none. For reports that are sealed, opens them first.
        stop: set from any thread to end the iteration soon.

    Attributes:
        refused: how many messages were no reports.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        *,
        decode: Callable[[bytes], Report] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._decode = decode or _default_decoder()
        self._stop = stop or threading.Event()
        self._unfinished: tuple[str, Mail] | None = None
        self.refused = 0

    def __iter__(self) -> Iterator[Report]:
        """Wait for reports.

        Raises:
            BrokerUnavailable: iterate again later; nothing was lost.
            NoSuchQueue: one of the queues does not exist.
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
                self._stop.wait(_PAUSE.total_seconds())

    def _read(self, queue: str, mail: Mail) -> Iterator[Report]:
        self._unfinished = (queue, mail)
        try:
            report = self._decode(mail.body)
        except Refused as refusal:
            self._set_aside(queue, mail, refusal)
        else:
            yield report
        self._unfinished = None
        self._broker.post.acknowledge(mail)

    def _set_aside(self, queue: str, mail: Mail, refusal: Refused) -> None:
        self.refused += 1
        _log.warning("report.refused", extra={"queue": queue, "size_bytes": len(mail.body), "code": refusal.code})
        headers = dead_headers(mail.headers, reason=_REFUSED, detail=refusal.message)
        # Kept only where somebody has made a queue for them: a flood of rubbish must not fill the broker.
        self._broker.post.send(dead_letter_queue(queue), mail.body, content_type=mail.content_type, headers=headers)


def _default_decoder() -> Callable[[bytes], Report]:
    from jobqueue.codec import decode_report

    return decode_report
