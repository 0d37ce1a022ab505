"""Workers in Redis: one hash of those who are there, and when each one's time is over."""

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

from jobqueue.ids import WorkerId
from jobqueue.registry.presence import WorkerRecord
from jobqueue.registry.redis_client import RedisClient
from jobqueue.registry.redis_fields import milliseconds
from jobqueue.resources import Offer

_WORKERS: Final = "jobqueue:workers"
_ENDS: Final = "jobqueue:worker_ends"
_SPANS: Final = "jobqueue:worker_spans"


class RedisWorkers:
    """`Workers` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def announce(self, worker: WorkerRecord, *, ttl: timedelta) -> None:
        """Say that it is there."""
        self._client.witness("announce", worker.worker_id, json.dumps(asdict(worker)), milliseconds(ttl))

    def leave(self, worker_id: WorkerId) -> None:
        """Say that it has gone."""
        self._client.ask(("HDEL", _WORKERS, worker_id), ("HDEL", _SPANS, worker_id), ("ZREM", _ENDS, worker_id))

    def present(self) -> list[WorkerRecord]:
        """Return who is there, by id."""
        found = [_parse(text) for text in self._client.run("present")]
        return sorted(found, key=lambda worker: worker.worker_id)


def _parse(text: bytes) -> WorkerRecord:
    fields: dict[str, Any] = json.loads(text)
    offer = fields["offer"]
    fields["queues"] = tuple(fields["queues"])
    fields["devices"] = tuple(fields.get("devices", ()))
    fields["offer"] = Offer(**{**offer, "gpu_memory_bytes": tuple(offer["gpu_memory_bytes"])})
    return WorkerRecord(**fields)
