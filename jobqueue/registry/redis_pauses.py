"""Paused queues in Redis: one hash, of a JSON object for each."""

import json
from datetime import UTC, datetime
from typing import Final

from jobqueue.registry.pauses import Pause
from jobqueue.registry.redis_client import RedisClient, as_bytes

_PAUSES: Final = "jobqueue:pauses"
_SOMEBODY: Final = "somebody"


class RedisPauses:
    """`Pauses` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def pause(self, pause: Pause) -> None:
        """Keep it until it is taken back."""
        told = {"at": pause.at.isoformat(), "by": pause.by, "reason": pause.reason}
        self._client.ask(("HSETNX", _PAUSES, as_bytes(pause.queue), json.dumps(told)))

    def resume(self, queue: str) -> bool:
        """Take that back; tells whether it was wanted."""
        (removed,) = self._client.ask(("HDEL", _PAUSES, as_bytes(queue)))
        return bool(removed)

    def paused(self) -> dict[str, Pause]:
        """Return all that operators want, by queue."""
        (found,) = self._client.ask(("HGETALL", _PAUSES))
        pauses = [_parse(queue.decode("utf-8", "replace"), text) for queue, text in found.items()]
        return {pause.queue: pause for pause in sorted(pauses, key=lambda pause: pause.queue)}


def _parse(queue: str, text: bytes) -> Pause:
    """Return what is kept of a queue; what cannot be read pauses it all the same, and keeps nobody from the others."""
    try:
        told = json.loads(text)
        return Pause(queue=queue, at=datetime.fromisoformat(told["at"]), by=told["by"], reason=told.get("reason", ""))
    except (ValueError, TypeError, KeyError):
        return Pause(queue=queue, at=datetime.fromtimestamp(0, UTC), by=_SOMEBODY)
