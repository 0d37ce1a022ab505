"""What lies in the queues of a Redis: one script tells all of it."""

from jobqueue.brokers.base import Seen
from jobqueue.brokers.redis_server import RedisServer, lists_of
from jobqueue.routing import FIRST, Selection


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
