"""Workers in Redis: one hash of those who are there, when each one's time is over, and one hash of what is to drain."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from jobqueue.ids import WorkerId
from jobqueue.registry.presence import Drain, Gauge, WorkerRecord
from jobqueue.registry.redis_client import RedisClient, as_bytes
from jobqueue.registry.redis_fields import milliseconds
from jobqueue.resources import Offer

_WORKERS: Final = "jobqueue:workers"
_ENDS: Final = "jobqueue:worker_ends"
_SPANS: Final = "jobqueue:worker_spans"
_DRAINS: Final = "jobqueue:drains"
_NOW: Final = b"now"
_LATER: Final = b"later"

Value = TypeVar("Value", WorkerRecord, Offer, Gauge)


class RedisWorkers:
    """`Workers` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def announce(self, worker: WorkerRecord, *, ttl: timedelta) -> Drain | None:
        """Say that it is there, and return what an operator wants of it or its node."""
        targets = (worker.worker_id, worker.node_id)
        wanted = self._client.witness("announce", worker.worker_id, _dump(worker), milliseconds(ttl), worker.node_id)
        drains = [_parse_drain(target, how) for target, how in zip(targets, wanted, strict=True) if how]
        return max(drains, key=lambda drain: drain.is_hurried, default=None)

    def leave(self, worker_id: WorkerId) -> None:
        """Say that it has gone."""
        self._client.ask(("HDEL", _WORKERS, worker_id), ("HDEL", _SPANS, worker_id), ("ZREM", _ENDS, worker_id))

    def present(self) -> list[WorkerRecord]:
        """Return who is there, by id."""
        found = [_parse(text) for text in self._client.run("present")]
        return sorted(found, key=lambda worker: worker.worker_id)

    def drain(self, drain: Drain) -> None:
        """Keep what an operator wants."""
        self._client.ask(("HSET", _DRAINS, as_bytes(drain.target), _NOW if drain.is_hurried else _LATER))

    def resume(self, target: str) -> bool:
        """Take that back; tells whether it was wanted."""
        (removed,) = self._client.ask(("HDEL", _DRAINS, as_bytes(target)))
        return bool(removed)

    def drains(self) -> list[Drain]:
        """Return all that operators want, by target."""
        (found,) = self._client.ask(("HGETALL", _DRAINS))
        drains = [_parse_drain(target.decode("utf-8", "replace"), how) for target, how in found.items()]
        return sorted(drains, key=lambda drain: drain.target)


def _parse_drain(target: str, how: bytes) -> Drain:
    return Drain(target=target, is_hurried=how == _NOW)


def _dump(worker: WorkerRecord) -> str:
    return json.dumps(asdict(worker), default=datetime.isoformat)


def _parse(text: bytes) -> WorkerRecord:
    """Return the record; one of another version may lack what this one knows, and say more."""
    told: dict[str, Any] = json.loads(text)
    offer, started_at = told["offer"], told.get("started_at")
    one = told.get("experiment_id")  # what older workers tell
    return _make(
        WorkerRecord,
        {
            **told,
            "queues": tuple(told["queues"]),
            **{name: tuple(told.get(name, ())) for name in ("devices", "networks", "images")},
            "experiment_ids": tuple(told.get("experiment_ids", [one] if one else ())),
            "gauges": tuple(_make(Gauge, gauge) for gauge in told.get("gauges", ())),
            "offer": _make(Offer, {**offer, "gpu_memory_bytes": tuple(offer["gpu_memory_bytes"])}),
            "started_at": datetime.fromisoformat(started_at) if started_at else None,
        },
    )


def _make(kind: type[Value], told: Mapping[str, Any]) -> Value:
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in told.items() if name in known})
