"""RabbitMQ: quorum queues, every message confirmed, and a delivery put off as a confirmed copy in a queue of its own.

The deferred queue gives its messages back by at-least-once dead-lettering, into a queue that is served first: whoever
has waited once does not wait behind the backlog again. A classic queue loses confirmed messages when the broker is
killed. All delays are short, because a message expires only at the head of its queue.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from jobqueue.brokers.base import Deliveries, Depth, Line, Post, QueueRecord, Queues, Survey, missing_queue
from jobqueue.brokers.copies import dead_headers, fresh_headers
from jobqueue.brokers.lines import ConfirmingLine
from jobqueue.brokers.links import PERSISTENT, Link, Links, receiving_url, tls_options, translated
from jobqueue.brokers.rabbitmq_ledger import LEDGER, Ledger
from jobqueue.brokers.rabbitmq_management import parse_management
from jobqueue.brokers.rabbitmq_post import RabbitPost
from jobqueue.brokers.rabbitmq_survey import RabbitSurvey, look_at_all
from jobqueue.routing import dead_letter_queue, deferred_queue, first_queue
from jobqueue.tls import split_certificates

_QUORUM: Final = {"x-queue-type": "quorum"}
# The registry counts attempts; a limit here would drop an experiment that is only put off often, or a dead letter that
# is only looked at often.
_DELIVERY_LIMIT: Final = 1_000_000
_CONSUMER_TIMEOUT: Final = timedelta(days=30)
_SHORTEST_DELAY: Final = timedelta(milliseconds=100)
_LONGEST_DELAY: Final = timedelta(seconds=5)
# Messages expire at the head of their queue only: what a stranger laid there without an end would hold up all others.
_LONGEST_MS: Final = int(_LONGEST_DELAY.total_seconds() * 1000)
# A copy must neither expire, nor claim another user, nor change its queue type's arguments.
_LEFT_OUT: Final = ("application_headers", "expiration", "user_id", "cluster_id", "delivery_mode")
# A lone broker notes its newest quorum queue only when another one is made, or seconds later, and loses it when it is
# killed before: it keeps the name, and can neither be used nor be filled again.
_SETTLING: Final = "_settling"
# Deleting a queue within the first second of a broker, while what dead-letters from it starts, ends all at-least-once
# dead-lettering there, and every declaration of such a queue, until the broker is restarted (3.10.8).
_STARTING: Final = timedelta(seconds=2)
_WORKER_HEARTBEAT_SECONDS: Final = 30
# With a connection attempt under the two seconds within which a user is told that the broker is away.
_CONFIRM: Final = timedelta(seconds=1.2)


class RabbitBroker:
    """A RabbitMQ broker, 3.10 or newer.

    Args:
        url: `amqp[s]://`, several servers separated by `;`.
        management_url: of its HTTP API; empty: see `parse_management`.
    """

    is_pushing = True
    is_charging = False

    def __init__(self, url: str, *, management_url: str = "") -> None:
        self._url = url
        self._links = Links(url)
        self._post = RabbitPost(url, self._links)
        self.queues: Queues = RabbitQueues(self._links)
        management = parse_management(url, management_url)
        self.survey: Survey = RabbitSurvey(management, self._links, listed=self.queues.listed)
        self.deliveries: Deliveries = RabbitDeliveries(url, self._links)
        self.post: Post = self._post

    def celery_settings(self) -> dict[str, Any]:
        """Return how Celery is to connect: with confirms, and with heartbeats that end before a lease does."""
        settings: dict[str, Any] = {
            "broker_url": split_certificates(self._url)[0],
            "broker_read_url": receiving_url(self._url),
            "broker_transport_options": {"confirm_publish": True},
            "broker_heartbeat": _WORKER_HEARTBEAT_SECONDS,
        }
        tls = tls_options(self._url)
        return {**settings, "broker_use_ssl": tls} if tls else settings

    def request_queue(self, name: str) -> Any:
        """Return the `kombu.Queue`; Celery tells by its type that it must not ask for a prefetch over all queues."""
        from kombu import Exchange, Queue

        return Queue(name, Exchange(""), routing_key=name, queue_arguments=dict(_QUORUM), no_declare=True)

    def consumed(self, name: str) -> list[Any]:
        """Return the queue of what comes back from having been put off, and the request queue."""
        return [self.request_queue(first_queue(name)), self.request_queue(name)]

    def line(self, connection: Any) -> Line:
        """Return a way into the request queues."""
        return ConfirmingLine(connection, timeout=_CONFIRM)

    def close(self) -> None:
        """Close its connections; mail that was not acknowledged comes back."""
        self._post.close()
        self._links.close()


class RabbitQueues:
    """Queues by name."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._ledger = Ledger(links)

    def create(
        self,
        queue: str,
        *,
        expires_at: datetime | None = None,
        owner: str = "",
        retention: timedelta | None = None,
    ) -> None:
        """Create a request queue, after the companions that it needs, and note it in the ledger."""
        served = {
            **_QUORUM,
            **_dead_lettering(dead_letter_queue(queue)),
            "x-delivery-limit": _DELIVERY_LIMIT,
            "x-consumer-timeout": int(_CONSUMER_TIMEOUT.total_seconds() * 1000),
        }
        declared = self._declare(
            {
                LEDGER: {**_QUORUM, "x-delivery-limit": _DELIVERY_LIMIT},
                dead_letter_queue(queue): {**_QUORUM, "x-delivery-limit": _DELIVERY_LIMIT},
                first_queue(queue): served,
                deferred_queue(queue): {**_QUORUM, **_dead_lettering(first_queue(queue)), "x-message-ttl": _LONGEST_MS},
                queue: served,
            }
        )
        if LEDGER in declared:
            self._ledger.begin()
        self._ledger.note(QueueRecord(queue=queue, expires_at=expires_at, owner=owner, retention=retention))

    def listed(self) -> list[QueueRecord]:
        """Return what the ledger says; a queue that somebody deleted by other means is still in it."""
        return self._ledger.records()

    def create_plain(self, queue: str) -> None:
        """Create one quorum queue: it outlives a node of a cluster, as reports must."""
        self._declare({queue: _QUORUM})

    def exists(self, queue: str) -> bool:
        """Tell whether it exists, without creating it."""
        return self._links.run(lambda link: link.look(queue)) is not None

    def depth(self, queue: str) -> Depth:
        """Return how much lies in it and was put off; only operators can ask for unacknowledged ones."""
        depths = self._links.run(lambda link: look_at_all(link, [queue]))
        if queue not in depths:
            raise missing_queue(queue)
        return depths[queue]

    def delete(self, queue: str) -> None:
        """Delete a queue first, so that nothing comes back into it, then its companions."""

        def delete(link: Link) -> None:
            if link.look(deferred_queue(queue)) is not None:
                link.wait_for_age(_STARTING)
            for name in (queue, deferred_queue(queue), first_queue(queue), dead_letter_queue(queue)):
                if link.look(name) is not None:
                    with link.patience():
                        link.channel.queue_delete(name)

        self._links.run(delete)
        self._ledger.forget(queue)

    def _declare(self, queues: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Declare those that are not there, and return their names."""

        def declare(link: Link) -> list[str]:
            # Declaring one that an operator made with other arguments would be an error.
            missing = [name for name in queues if link.look(name) is None]
            with link.patience():
                for name in missing:
                    _declare(link, name, queues[name])
                for name in missing[-1:]:
                    _declare(link, name + _SETTLING, _QUORUM)
                    link.channel.queue_delete(name + _SETTLING)
            return missing

        return self._links.run(declare)


class RabbitDeliveries:
    """What becomes of one delivery; copies travel over connections other than the consuming one."""

    def __init__(self, url: str, links: Links) -> None:
        self._url = url
        self._links = links

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        """Do nothing: RabbitMQ keeps a delivery as long as its consumer lives, or its consumer timeout is over."""

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        """Put a confirmed copy into the deferred queue, then acknowledge; a long delay takes several rounds."""
        bounded = max(_SHORTEST_DELAY, min(delay, _LONGEST_DELAY))
        expiration = str(int(bounded.total_seconds() * 1000))
        self._move(message, deferred_queue(queue), fresh_headers(message.headers), {"expiration": expiration})

    def dead_letter(self, message: Any, *, queue: str, reason: str, detail: str) -> None:
        """Put a confirmed copy into the dead-letter queue, then acknowledge."""
        self._move(message, dead_letter_queue(queue), dead_headers(message.headers, reason=reason, detail=detail), {})

    def _move(self, message: Any, queue: str, headers: dict[str, Any], changes: Mapping[str, Any]) -> None:
        body = _to_bytes(message.body, message.content_encoding)
        if not message.errors:
            # kombu has decompressed the body, and would do it again.
            headers.pop("compression", None)
        kept = {key: value for key, value in message.properties.items() if key not in _LEFT_OUT}
        properties = {**kept, **changes, "application_headers": headers, "delivery_mode": PERSISTENT}
        if not self._links.run(lambda link: link.publish(queue, body, properties)):
            raise missing_queue(queue)
        with translated(self._url):
            message.ack()


def _declare(link: Link, queue: str, arguments: Mapping[str, object]) -> None:
    link.channel.queue_declare(queue, durable=True, auto_delete=False, arguments=dict(arguments))


def _to_bytes(body: bytes | str, encoding: str | None) -> bytes:
    """Undo the library's decoding; an empty body is text to it whatever its encoding is called."""
    if isinstance(body, str):
        return body.encode(encoding or "utf-8") if body else b""
    return bytes(body)


def _dead_lettering(target: str) -> dict[str, object]:
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": target,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
