"""Mail over RabbitMQ: each queue is received from over a connection that stays, each message sent is confirmed."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Mail, missing_queue
from jobqueue.brokers.copies import fresh_headers, text_headers
from jobqueue.brokers.links import PERSISTENT, Link, Links, broker_errors, translated
from jobqueue.brokers.polling import poll
from jobqueue.errors import BrokerUnavailable

# The broker gives the mail of a dead receiver back after two of them; a callback may take as long.
_RECEIVER_HEARTBEAT_SECONDS: Final = 300


class RabbitPost:
    """Bytes to a named queue and back; each queue is received from over a connection of its own."""

    def __init__(self, url: str, links: Links) -> None:
        self._url = url
        self._links = links
        self._receivers: dict[tuple[int, str], _Receiver] = {}

    def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send, confirmed by the broker. Returns False when the queue does not exist."""
        properties = {
            "content_type": content_type,
            "content_encoding": "binary",
            "delivery_mode": PERSISTENT,
            "application_headers": dict(headers or {}),
        }
        return self._links.run(lambda link: link.publish(queue, body, properties))

    def receive(self, queue: str, *, timeout: timedelta) -> Mail | None:
        """Return the next message, or None after `timeout`."""
        # A forked child has receivers of its own: it must not touch its parent's sockets and locks.
        receiver = self._receivers.setdefault((os.getpid(), queue), _Receiver(self._url, queue))
        return poll(receiver.fetch, timeout=timeout)

    def acknowledge(self, mail: Mail) -> None:
        """Remove a received message for good.

        Raises:
            BrokerUnavailable: the connection that it came over is gone; it will be delivered again.
        """
        receipt = mail.receipt(_Receipt)
        receipt.receiver.acknowledge(receipt)

    def give_back(self, mail: Mail) -> None:
        """Put a received message back; one whose connection is gone is back already."""
        receipt = mail.receipt(_Receipt)
        receipt.receiver.give_back(receipt)

    def close(self) -> None:
        """Close the receiving connections of this process."""
        for (pid, _), receiver in list(self._receivers.items()):
            if pid == os.getpid():
                receiver.close()


@dataclass(frozen=True, kw_only=True)
class _Receipt:
    receiver: "_Receiver"
    link: Link
    delivery_tag: int


class _Receiver:
    """The connection over which one queue is received; it stays, since mail is acknowledged where it came from."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self._queue = queue
        self._lock = threading.Lock()
        self._link: Link | None = None

    def fetch(self) -> Mail | None:
        with self._lock, translated(self._url):
            link, self._link = self._link, None
            if link is not None:
                try:
                    return self._fetch(link)
                except TimeoutError:
                    raise
                except broker_errors():
                    pass
            return self._fetch(Link(self._url, heartbeat_seconds=_RECEIVER_HEARTBEAT_SECONDS))

    def acknowledge(self, receipt: _Receipt) -> None:
        with self._lock, translated(self._url):
            if receipt.link is not self._link:
                raise BrokerUnavailable(f"the connection over which mail of {self._queue} came is gone; it comes again")
            receipt.link.channel.basic_ack(receipt.delivery_tag)

    def give_back(self, receipt: _Receipt) -> None:
        with self._lock, translated(self._url):
            if receipt.link is self._link:
                receipt.link.channel.basic_reject(receipt.delivery_tag, requeue=True)

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.close()

    def _fetch(self, link: Link) -> Mail | None:
        try:
            mail = self._take(link)
        except BaseException:
            link.drop()
            raise
        self._link = link
        return mail

    def _take(self, link: Link) -> Mail | None:
        # Looking costs nothing; taking from an empty quorum queue is a write to its log.
        found = link.look(self._queue)
        if found is None:
            raise missing_queue(self._queue)
        message = link.channel.basic_get(self._queue) if found.message_count else None
        if message is None:
            return None
        return Mail(
            body=message.body or b"",
            content_type=str(message.properties.get("content_type", "")),
            headers=text_headers(fresh_headers(message.properties.get("application_headers") or {})),
            handle=_Receipt(receiver=self, link=link, delivery_tag=message.delivery_tag),
        )
