"""What was noted of a request queue, as JSON values, for brokers that keep it as text."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from jobqueue.brokers.base import QueueRecord


def record_to_json(record: QueueRecord) -> dict[str, Any]:
    """Return all of a record but its name."""
    return {
        "expires_at": record.expires_at.isoformat() if record.expires_at else None,
        "owner": record.owner,
        "retention_seconds": record.retention.total_seconds() if record.retention is not None else None,
    }


def record_from_json(queue: str, fields: Mapping[str, Any]) -> QueueRecord:
    """Return the record of `queue` with these fields; one that is not there says nothing."""
    expires_at, retention_seconds = fields.get("expires_at"), fields.get("retention_seconds")
    return QueueRecord(
        queue=queue,
        expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
        owner=fields.get("owner", ""),
        retention=timedelta(seconds=retention_seconds) if retention_seconds is not None else None,
    )
