"""How a delivery goes back: after a delay, by the broker's own means; or without a copy, where those fail."""

import logging
from datetime import timedelta
from typing import Any, Final

from kombu.asynchronous import get_event_loop

from jobqueue.brokers.base import Deliveries
from jobqueue.errors import BrokerUnavailable, NoSuchQueue

log = logging.getLogger(__name__)

BEFORE_REQUEUE: Final = timedelta(seconds=1)


def put_off(message: Any, *, queue: str, delay: timedelta, deliveries: Deliveries) -> None:
    """Let a message come back to a queue after `delay`, or soon. Main thread only."""
    try:
        deliveries.defer(message, queue=queue, delay=delay)
    except (BrokerUnavailable, NoSuchQueue) as error:
        log.warning("delivery.not_deferred", extra={"queue": queue, "error": error.message})
        requeue_later(message)


def requeue_later(message: Any) -> None:
    """Give a delivery back without a copy, not so fast that it spins. Main thread only."""
    loop = get_event_loop()
    if loop is None:
        requeue(message)
    else:
        loop.call_later(BEFORE_REQUEUE.total_seconds(), requeue, message)


def requeue(message: Any) -> None:
    """Give a delivery back at once, if its channel still lives. Main thread only."""
    try:
        message.requeue()
    except Exception as error:  # noqa: BLE001 - with its channel the delivery has died: it comes back by itself
        log.warning("delivery.not_requeued", extra={"error": type(error).__name__})
