"""Mail over SQS: each message is sent by itself, received alone, and comes back when it was not acknowledged."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Mail
from jobqueue.brokers.copies import (
    DETAIL_HEADER,
    REASON_HEADER,
    TIME_HEADER,
    dead_headers,
    pack,
    text_headers,
    unpack_json,
)
from jobqueue.brokers.sqs_client import Receipt, SqsServer
from jobqueue.errors import BrokerUnavailable, NoSuchQueue

_PAUSE_SECONDS: Final = 0.2


class SqsPost:
    """Bytes to a named queue and back."""

    def __init__(self, server: SqsServer) -> None:
        self._server = server
        self._unacknowledged: dict[str, Receipt] = {}

    def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send. Returns False when the queue does not exist."""
        try:
            self._server.send(queue, json.dumps(pack(queue, body, content_type=content_type, headers=headers or {})))
        except NoSuchQueue:
            return False
        return True

    def receive(self, queue: str, *, timeout: timedelta) -> Mail | None:
        """Return the next message, or None after `timeout`, rounded up to whole seconds: SQS itself waits."""
        until = time.monotonic() + timeout.total_seconds()
        while True:
            left = max(0.0, until - time.monotonic())
            wait = min(timedelta(seconds=math.ceil(left)), self._server.address.wait)
            for receipt in self._server.receive(queue, wait=wait):
                self._unacknowledged[receipt.handle] = receipt
                return _to_mail(receipt)
            if time.monotonic() >= until:
                return None
            time.sleep(min(_PAUSE_SECONDS, max(0.0, until - time.monotonic())))

    def acknowledge(self, mail: Mail) -> None:
        """Remove a received message for good."""
        receipt = mail.receipt(Receipt)
        self._server.delete(receipt)
        self._unacknowledged.pop(receipt.handle, None)

    def give_back(self, mail: Mail) -> None:
        """Let a received message be received again at once."""
        receipt = mail.receipt(Receipt)
        self._server.give_back_all([receipt])
        self._unacknowledged.pop(receipt.handle, None)

    def close(self) -> None:
        """Give back what was received and not acknowledged, as far as SQS answers; it comes back anyway."""
        receipts, self._unacknowledged = self._unacknowledged, {}
        with suppress(BrokerUnavailable):
            for receipt in receipts.values():
                self._server.give_back_all([receipt])


def _to_mail(receipt: Receipt) -> Mail:
    mail = unpack_json(receipt.body.encode(), handle=receipt)
    reason = receipt.attributes.get(REASON_HEADER)
    if reason is None:
        return mail
    # A dead letter lies there as it came, with the reason beside it.
    detail = receipt.attributes.get(DETAIL_HEADER, "")
    headers = text_headers(
        dead_headers(mail.headers, reason=reason, detail=detail, at=receipt.attributes.get(TIME_HEADER, ""))
    )
    return Mail(body=mail.body, content_type=mail.content_type, headers=headers, handle=receipt)
