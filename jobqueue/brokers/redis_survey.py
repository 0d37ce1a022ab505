"""What lies in the queues of a Redis: one round trip tells all of it."""

from collections.abc import Collection
from itertools import islice
from typing import Any

from jobqueue.brokers.base import Depth, Seen
from jobqueue.brokers.redis_server import QUEUES, UNACKED_INDEX, RedisServer, deferred_index, lists_of
from jobqueue.routing import FIRST, Selection, first_queue, is_request_queue


class RedisSurvey:
    """What lies where.

    Args:
        server: whom it asks.
        records: the hash of the request queues.
    """

    def __init__(self, server: RedisServer, *, records: str) -> None:
        self._server, self._records = server, records

    def look(self, selection: Selection) -> Seen:
        """Return the request queues that a selection's patterns find."""
        with self._server.translated():
            flat = self._server.count_ready(keys=[self._records], args=[*lists_of(""), *lists_of(FIRST)])
        counts = {name.decode(): waiting for name, waiting in zip(flat[::2], flat[1::2], strict=True)}
        waiting = {name: count for name, count in counts.items() if selection.finds(name)}
        return Seen(waiting=waiting, others=tuple(sorted(counts.keys() - waiting)))

    def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        """Return how much lies in each of these queues."""
        with self._server.translated() as client:
            return read_depths(self._server, client, queues)


def read_depths(server: RedisServer, client: Any, queues: Collection[str]) -> dict[str, Depth]:
    """Return how much lies in each queue that exists, in one round trip; only request queues have something put off."""
    if not queues:
        return {}
    with client.pipeline(transaction=False) as pipe:
        pipe.smismember(QUEUES, list(queues))
        for queue in queues:
            if is_request_queue(queue):
                server.count_deferred(keys=[deferred_index(queue), UNACKED_INDEX], client=pipe)
            for key in _lists(queue):
                pipe.llen(key)
        known, *answers = pipe.execute()
    counts = iter(answers)
    ready = {queue: sum(islice(counts, len(_lists(queue)) + is_request_queue(queue))) for queue in queues}
    return {queue: Depth(ready=ready[queue]) for queue, is_known in zip(queues, known, strict=True) if is_known}


def _lists(queue: str) -> list[str]:
    return [*lists_of(queue), *(lists_of(first_queue(queue)) if is_request_queue(queue) else [])]
