"""What becomes of one delivery from SQS, by moving the time at which others may have its message."""

import logging
import math
import random
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from jobqueue.brokers.base import missing_queue
from jobqueue.brokers.copies import dead_headers
from jobqueue.brokers.sqs_address import LONGEST_INVISIBILITY
from jobqueue.brokers.sqs_client import MAX_MESSAGE_BYTES, Receipt, Refusal, SqsServer
from jobqueue.errors import NoSuchQueue
from jobqueue.routing import dead_letter_queue

log = logging.getLogger(__name__)

RECEIPT: Final = "sqs_receipt"
# So that what was put off together does not come back together.
_JITTER: Final = 0.1
# A request takes a moment, and SQS' clock is not ours.
_CAP_MARGIN: Final = timedelta(minutes=1)
# What may stand in a message at SQS: what may stand in XML.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class SqsDeliveries:
    """What becomes of one delivery."""

    def __init__(self, server: SqsServer) -> None:
        self._server = server
        self._given_up: set[str] = set()

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        """Keep others from it for one lease from now; near the longest time that SQS allows, leave it to a copy."""
        receipt = receipt_of(properties)
        if receipt is None or receipt.handle in self._given_up:
            return
        if receipt.age >= self._server.address.hold:
            self._relay(receipt)
            return
        try:
            self._server.hide(receipt, seconds=min(self._server.visibility_seconds, _allowed_seconds(receipt)))
        except Refusal as refusal:
            if refusal.is_cap:
                self._relay(receipt)
            else:
                # It is visible, or has been delivered again: another delivery has taken over, and waits for the lease.
                self._given_up.add(receipt.handle)
                log.warning("delivery.lost", extra={"queue": receipt.queue, "error": refusal.message})

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        """Keep it from everybody for `delay` and a little more, and free its place at this consumer."""
        del queue
        receipt = receipt_of(message.properties)
        if receipt is not None:
            seconds = delay.total_seconds() * random.uniform(1, 1 + _JITTER)  # noqa: S311 - nobody gains by guessing it
            with suppress(Refusal, NoSuchQueue):
                # What SQS does not put off is visible, gone, or left to a copy: it comes back without us, or never.
                self._server.hide(receipt, seconds=min(math.ceil(seconds), _allowed_seconds(receipt)))
        forget(message)
        message._state = "REQUEUED"  # noqa: SLF001  # so that a later `ack` of it is an error, not a loss

    def dead_letter(self, message: Any, *, queue: str, reason: str, detail: str) -> None:
        """Send it as it is to the dead-letter queue, with the reason as attributes, then acknowledge."""
        receipt = receipt_of(message.properties)
        if receipt is None:
            raise missing_queue(queue)
        attributes = {
            name: _FORBIDDEN.sub("?", text) for name, text in dead_headers({}, reason=reason, detail=detail).items()
        }
        size = len(receipt.body.encode()) + sum(len(name) + len(text.encode()) for name, text in attributes.items())
        if size > MAX_MESSAGE_BYTES:
            log.warning("delivery.reason_left_out", extra={"queue": queue, "reason": reason})
            attributes = {}
        self._server.send(dead_letter_queue(queue), receipt.body, attributes=attributes)
        message.ack()

    def _relay(self, receipt: Receipt) -> None:
        """Let a copy take its place; whoever receives that finds the lease held, and puts it off."""
        self._server.send(receipt.queue, receipt.body)
        self._given_up.add(receipt.handle)
        log.info("delivery.relayed", extra={"queue": receipt.queue})
        self._server.delete(receipt)


def receipt_of(properties: Mapping[str, Any]) -> Receipt | None:
    """Return what SQS knows a delivery by; None for a message that did not come from there."""
    receipt = (properties.get("delivery_info") or {}).get(RECEIPT)
    return receipt if isinstance(receipt, Receipt) else None


def forget(message: Any) -> None:
    """Free the place of a delivery at its consumer, whose transport's `ack` would remove the message itself."""
    from kombu.transport.virtual import QoS

    QoS.ack(message.channel.qos, message.delivery_tag)


def _allowed_seconds(receipt: Receipt) -> int:
    return max(0, int((LONGEST_INVISIBILITY - _CAP_MARGIN - receipt.age).total_seconds()))
