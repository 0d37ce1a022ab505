"""Queues at SQS, and what was noted of them, as tags that operators see in the console too."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from jobqueue.brokers.base import Depth, QueueRecord, missing_queue
from jobqueue.brokers.queue_records import record_from_json, record_to_json
from jobqueue.brokers.sqs_client import Refusal, SqsServer
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import dead_letter_queue, first_queue, is_request_queue

_RETENTION: Final = timedelta(days=14)
_KIND: Final = "jobqueue:kind"
_REQUEST: Final = "request"
_NOTES: Final = ("expires_at", "owner", "retention_seconds")
_NOTE: Final = "jobqueue:"
# What AWS lets stand in the value of a tag.
_FORBIDDEN: Final = re.compile(r"[^\w .:/=+@-]")
_LONGEST_NOTE: Final = 256
_PAGE: Final = 1000
_COUNTS: Final = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesDelayed",
    "ApproximateNumberOfMessagesNotVisible",
)
_DELETED_RECENTLY: Final = ("AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently")


class SqsQueues:
    """Queues by name."""

    def __init__(self, server: SqsServer) -> None:
        self._server = server

    def create(
        self,
        queue: str,
        *,
        expires_at: datetime | None = None,
        owner: str = "",
        retention: timedelta | None = None,
    ) -> None:
        """Create a request queue after its companions; a delivery that is put off needs no queue here."""
        record = QueueRecord(queue=queue, expires_at=expires_at, owner=owner, retention=retention)
        tags = _to_tags(record)
        self.create_plain(dead_letter_queue(queue))
        self.create_plain(first_queue(queue))
        self._create(queue, tags)
        self._server.on_queue("tag_queue", queue, Tags=tags)
        if absent := [_NOTE + name for name in _NOTES if _NOTE + name not in tags]:
            self._server.on_queue("untag_queue", queue, TagKeys=absent)

    def listed(self) -> list[QueueRecord]:
        """Return the request queues by their tags, by name; SQS may take a minute to list a new one."""
        found = ((queue, self._tags(queue)) for queue in sorted(filter(is_request_queue, self.names())))
        return [_to_record(queue, tags) for queue, tags in found if tags.get(_KIND) == _REQUEST]

    def names(self, beginning: str = "") -> Iterator[str]:
        """Yield the names of all queues that may be ours and begin so, a thousand for each request."""
        prefix, token = self._server.address.prefix, ""
        while True:
            page = {"NextToken": token} if token else {}
            answer = self._server.call("list_queues", QueueNamePrefix=prefix + beginning, MaxResults=_PAGE, **page)
            for url in answer.get("QueueUrls", ()):
                yield str(url).rpartition("/")[2].removeprefix(prefix)
            token = answer.get("NextToken", "")
            if not token:
                return

    def create_plain(self, queue: str) -> None:
        """Create one queue that keeps what lies in it as long as SQS can; one that exists stays as it is."""
        self._create(queue, {})

    def exists(self, queue: str) -> bool:
        """Tell whether it exists, without creating it."""
        return self._server.exists(queue)

    def depth(self, queue: str) -> Depth:
        """Return about how much lies in it and in what is served before it.

        What was put off counts as delivered and not acknowledged.
        """
        depth = self.count(queue)
        if depth is None:
            raise missing_queue(queue)
        return add_depths(depth, self.count(first_queue(queue)) if is_request_queue(queue) else None)

    def count(self, queue: str) -> Depth | None:
        """Return about how much lies in this one alone; None: it does not exist."""
        try:
            answer = self._server.on_queue("get_queue_attributes", queue, AttributeNames=list(_COUNTS))
        except NoSuchQueue:
            return None
        ready, delayed, hidden = (int(answer["Attributes"].get(name, 0)) for name in _COUNTS)
        return Depth(ready=ready + delayed, unacked=hidden)

    def delete(self, queue: str) -> None:
        """Delete a queue and its companions."""
        for name in (queue, first_queue(queue), dead_letter_queue(queue)):
            if self._server.exists(name):
                self._server.on_queue("delete_queue", name)
                self._server.exists(name)

    def _create(self, queue: str, tags: dict[str, str]) -> None:
        if self._server.exists(queue):
            return
        attributes = {
            "MessageRetentionPeriod": str(int(_RETENTION.total_seconds())),
            "VisibilityTimeout": str(self._server.visibility_seconds),
        }
        try:
            name = self._server.address.prefix + queue
            self._server.call("create_queue", QueueName=name, Attributes=attributes, tags=tags)
        except Refusal as refusal:
            if refusal.reason not in _DELETED_RECENTLY:
                raise
            raise BrokerUnavailable(
                f"the queue {queue} was deleted less than a minute ago",
                hint="SQS wants a minute before it is made again",
            ) from None

    def _tags(self, queue: str) -> dict[str, str]:
        try:
            return dict(self._server.on_queue("list_queue_tags", queue).get("Tags", {}))
        except NoSuchQueue:
            return {}


def add_depths(own: Depth, further: Depth | None) -> Depth:
    """Return what lies in a queue and in another one, if that is there."""
    if further is None:
        return own
    return Depth(ready=own.ready + further.ready, unacked=(own.unacked or 0) + (further.unacked or 0))


def _to_tags(record: QueueRecord) -> dict[str, str]:
    notes = {name: str(value) for name, value in record_to_json(record).items() if value not in (None, "")}
    kept = {_NOTE + name: _FORBIDDEN.sub("_", text)[:_LONGEST_NOTE] for name, text in notes.items()}
    return {_KIND: _REQUEST, **kept}


def _to_record(queue: str, tags: dict[str, str]) -> QueueRecord:
    notes: dict[str, object] = {name: tags[_NOTE + name] for name in _NOTES if _NOTE + name in tags}
    if "retention_seconds" in notes:
        notes["retention_seconds"] = float(str(notes["retention_seconds"]))
    return record_from_json(queue, notes)
