"""Keeps books: hands every report once to a function, for as long as it is let.

Reports come at least once. Those that come again, after a crash or a broken connection, are recognised by experiment,
fencing token and sequence among the most recent ones; across restarts the function itself has to bear with repetition.
"""

import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Broker
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.report import Report
from producers.inbox import Inbox

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = timedelta(milliseconds=500)
_LONGEST_PAUSE: Final = timedelta(seconds=30)
_WINDOW: Final = 10_000

_Seen = OrderedDict[tuple[str, int, int], None]


def listen(
    broker: Broker,
    queues: Sequence[str],
    callback: Callable[[Report], object],
    *,
    stop: threading.Event | None = None,
    decode: Callable[[bytes], Report] | None = None,
    window: int = _WINDOW,
) -> None:
    """Create the reporting queues where they are missing and hand each report to `callback`, until `stop` is set.

    A report is acknowledged after `callback` has returned. While the broker is away it is asked again, ever less often.

    Args:
        broker: where the queues are.
        queues: names of reporting queues.
        callback: what to do with a report. An error that it raises ends the listening; the report comes again once the
            broker is closed.
        stop: set from anywhere to end; without it this never returns.
        decode: bytes to a report, as `Inbox` takes it.
        window: how many recent reports are remembered.
    """
    stop = stop or threading.Event()
    inbox = Inbox(broker, queues, decode=decode, stop=stop)
    seen: _Seen = OrderedDict()
    pause = _FIRST_PAUSE
    while not stop.is_set():
        try:
            _create(broker, queues)
            for report in inbox:
                pause = _FIRST_PAUSE
                _pass_once(report, callback, seen=seen, window=window)
        except (BrokerUnavailable, NoSuchQueue) as error:
            _log.warning("listener.interrupted", extra={"code": error.code, "pause_seconds": pause.total_seconds()})
            stop.wait(pause.total_seconds() * random.uniform(0.5, 1))  # noqa: S311  # spreads listeners, hides nothing
            pause = min(2 * pause, _LONGEST_PAUSE)


def _pass_once(report: Report, callback: Callable[[Report], object], *, seen: _Seen, window: int) -> None:
    key = (report.experiment_id, report.token, report.sequence)
    if key in seen:
        _log.debug("report.repeated", extra={"experiment_id": report.experiment_id, "sequence": report.sequence})
        return
    callback(report)
    seen[key] = None
    if len(seen) > window:
        seen.popitem(last=False)


def _create(broker: Broker, queues: Sequence[str]) -> None:
    for queue in queues:
        broker.queues.create_plain(queue)
