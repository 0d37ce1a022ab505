"""Keeps books: hands every report once to a function, for as long as it is let.

Reports come at least once, and somebody may send again what he has seen. Both are recognised by experiment, fencing
token and sequence among the most recent attempts; across restarts the function itself has to bear with repetition.
"""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Broker
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.keys import KeyRing
from jobqueue.report import Report
from producers.heard import Heard
from producers.inbox import Inbox

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = timedelta(milliseconds=500)
_LONGEST_PAUSE: Final = timedelta(seconds=30)
_WINDOW: Final = 10_000


def listen(
    broker: Broker,
    queues: Sequence[str],
    callback: Callable[[Report], object],
    *,
    keys: KeyRing,
    stop: threading.Event | None = None,
    window: int = _WINDOW,
    tell: Callable[[str], object] = _log.warning,
) -> None:
    """Create the reporting queues where they are missing and hand each report to `callback`, until `stop` is set.

    A report is acknowledged after `callback` has returned. While the broker is away it is asked again, ever less often.
    Where `keys` trust a node to report on a queue, whatever no such node has signed is refused; where they trust none,
    everything is handed on, `signed_by` nobody.

    Args:
        broker: where the queues are.
        queues: names of reporting queues.
        callback: what to do with a report. An error that it raises ends the listening; the report comes again once the
            broker is closed.
        keys: which nodes are trusted, and what sealed reports are opened with.
        stop: set from anywhere to end; without it this never returns.
        window: of how many recent attempts is remembered what they have told.
        tell: is told in a sentence what was refused, and which numbers of an attempt are missing.

    Raises:
        KeyRefused: a key file is not to be used; the report comes again once the broker is closed.
    """
    stop = stop or threading.Event()
    inbox = Inbox(broker, queues, keys=keys, stop=stop, on_refused=tell)
    heard = Heard(attempts=window)
    pause = _FIRST_PAUSE
    while not stop.is_set():
        try:
            _create(broker, queues)
            for report in inbox:
                pause = _FIRST_PAUSE
                _pass_once(report, callback, heard=heard, tell=tell)
        except (BrokerUnavailable, NoSuchQueue) as error:
            _log.warning("listener.interrupted", extra={"code": error.code, "pause_seconds": pause.total_seconds()})
            stop.wait(pause.total_seconds() * random.uniform(0.5, 1))  # noqa: S311  # spreads listeners, hides nothing
            pause = min(2 * pause, _LONGEST_PAUSE)


def _pass_once(
    report: Report, callback: Callable[[Report], object], *, heard: Heard, tell: Callable[[str], object]
) -> None:
    if not heard.is_new(report):
        _log.debug("report.repeated", extra={"experiment_id": report.experiment_id, "sequence": report.sequence})
        return
    if missing := heard.missing_before(report):
        tell(f"{_describe(missing)} of {report.attempt_id} never came here, or come later")
    callback(report)
    heard.note(report)


def _describe(numbers: range) -> str:
    first, last = numbers[0], numbers[-1]  # its length may be more than `len` can tell
    return f"report {first}" if first == last else f"reports {first} to {last}"


def _create(broker: Broker, queues: Sequence[str]) -> None:
    for queue in queues:
        broker.queues.create_plain(queue)
