"""What the registry knows of an experiment, as a row, as lines and as JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jobqueue.lifecycle import Outcome
from jobqueue.quantities import describe_size
from jobqueue.registry.base import Record
from producers.cli.output import UNKNOWN, describe_age, describe_span, write_instant
from producers.timeline import make_view


def as_row(record: Record) -> dict[str, str]:
    """Return the cells of one line of `ls`."""
    return {
        "ID": record.submission.id,
        "AGE": describe_age(record.submission.submitted_at),
        "STATE": record.state,
        "NAME": record.submission.name or UNKNOWN,
        "QUEUE": record.submission.queue,
        "REASON": _short_reason(record),
    }


def as_fields(record: Record, *, outputs: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return the lines of `show`; `outputs` is the size in bytes of each output by path."""
    submission = record.submission
    return {
        "id": submission.id,
        "name": submission.name,
        "state": f"{record.state} ({record.phase})" if record.phase and not record.state.is_final else record.state,
        "reason": describe_reason(record),
        "hint": record.reason.verdict.hint if record.reason else "",
        "exit code": "" if record.exit_code is None else str(record.exit_code),
        "project": submission.project,
        "labels": ", ".join(f"{name}={value}" for name, value in submission.labels.items()),
        **dict(make_view(record).rows),
        "age": describe_age(submission.submitted_at),
        "ran for": _describe_run(record),
        "expires": "" if record.started_at or record.state.is_final else write_instant(submission.expires_at),
        "attempt": str(record.attempt) if record.attempt else "",
        "worker": record.worker_id or "",
        "last lines": "\n".join(record.last_lines),
        "outputs": "\n".join(f"{path}  {describe_size(size)}" for path, size in (outputs or {}).items()),
    }


def as_json(record: Record) -> dict[str, Any]:
    """Return the record as JSON values; times are RFC 3339, sizes bytes; the sealed message stays out."""
    submission, resources = record.submission, record.submission.resources
    return {
        "id": submission.id,
        "name": submission.name or None,
        "state": record.state,
        "phase": record.phase,
        "reason": record.reason.name if record.reason else None,
        "sentence": describe_reason(record),
        "hint": record.reason.verdict.hint if record.reason else "",
        "fault": record.reason.verdict.fault if record.reason else None,
        "exit_code": record.exit_code,
        "attempt": record.attempt,
        "progress": record.progress or None,
        "queue": submission.queue,
        "project": submission.project,
        "labels": submission.labels,
        "resources": {
            "cpus": resources.cpus,
            "memory_bytes": resources.memory_bytes,
            "disk_bytes": resources.disk_bytes,
            "shm_bytes": resources.shm_bytes,
            "gpus": resources.gpus,
            "gpu_memory_bytes": resources.gpu_memory_bytes,
        },
        "submitted_at": write_instant(submission.submitted_at),
        "expires_at": write_instant(submission.expires_at),
        "started_at": write_instant(record.started_at) or None,
        "finished_at": write_instant(record.finished_at) or None,
        "next_try_at": write_instant(record.next_try_at) or None,
        "worker": record.worker_id,
        "node": record.node_id,
        "is_cancelled": record.is_cancelled,
        "last_lines": list(record.last_lines),
        "history": [
            {"attempt": past.attempt, "token": past.token, "reason": past.reason.name, "detail": past.detail}
            for past in record.history
        ],
    }


def describe_reason(record: Record) -> str:
    """Return why it is where it is, in one sentence; empty when there is nothing to say."""
    if record.reason is None:
        return ""
    return Outcome(reason=record.reason, detail=record.detail).sentence


def _short_reason(record: Record) -> str:
    if record.reason is None:
        return "cancelling" if record.is_cancelled else UNKNOWN
    code = f" (exit code {record.exit_code})" if record.exit_code else ""
    return f"{record.reason.name}{code}"


def _describe_run(record: Record) -> str:
    if record.started_at is None:
        return ""
    return describe_span((record.finished_at or datetime.now(UTC)) - record.started_at)
