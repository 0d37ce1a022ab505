"""An experiment's record as the fields of a Redis hash, and back."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Phase, Reason, State
from jobqueue.registry.base import PastAttempt, Record, Submission
from jobqueue.registry.redis_client import Argument, as_bytes
from jobqueue.resources import Resources


def submission_arguments(submission: Submission) -> tuple[Argument, ...]:
    """Return what the scripts `register` and `acquire` begin with."""
    key = f"{submission.project}:{submission.idempotency_key}" if submission.idempotency_key else ""
    return (
        submission.id,
        _dump_submission(submission),
        submission.message,
        as_bytes(submission.project),
        as_bytes(submission.name),
        submission.spec_digest,
        as_bytes(key),
        as_bytes(submission.queue),
        submission.digest,
    )


def milliseconds(duration: timedelta) -> int:
    """Return a duration as the scripts count it."""
    return duration // timedelta(milliseconds=1)


def parse_record(flat: Sequence[bytes], *, message: bytes = b"") -> Record:
    """Return the record that a hash holds.

    Args:
        flat: names and values in turn, as HGETALL answers.
        message: the sealed envelope, kept outside of the hash.
    """
    fields = {
        name.decode(): value.decode("utf-8", "replace") for name, value in zip(flat[::2], flat[1::2], strict=True)
    }
    exit_code, is_given_back = fields["exit_code"], not fields["worker_id"] and fields["until_ms"] != "0"
    return Record(
        submission=parse_submission(fields["submission"], message=message),
        state=State(fields["state"]),
        attempt=int(fields["attempt"]),
        token=int(fields["token"]),
        worker_id=WorkerId(fields["worker_id"]) or None,
        node_id=NodeId(fields["node_id"]) or None,
        phase=Phase(fields["phase"]) if fields["phase"] else None,
        reason=Reason[fields["reason"]] if fields["reason"] else None,
        detail=fields["detail"],
        exit_code=int(exit_code) if exit_code else None,
        last_lines=tuple(json.loads(fields["last_lines"] or "[]")),
        progress=fields["progress"],
        started_at=_parse_instant(fields["started_at"]),
        finished_at=_parse_instant(fields["finished_at"]),
        next_try_at=_parse_instant(fields["until_ms"]) if is_given_back else None,
        cancel_reason=Reason[fields["cancel_reason"]] if fields["cancel_reason"] else None,
        is_whole=bool(fields.get("is_whole")),
        user_failures=int(fields["user_failures"]),
        platform_failures=int(fields["platform_failures"]),
        history=tuple(_parse_past(past) for past in json.loads(fields["history"] or "[]")),
    )


def _dump_submission(submission: Submission) -> str:
    fields = {**vars(submission), "resources": vars(submission.resources)}
    del fields["message"], fields["digest"]
    if not submission.is_fast:
        del fields["is_fast"]  # which older versions do not know
    for name in ("submitted_at", "expires_at"):
        fields[name] = fields[name].isoformat()
    return json.dumps(fields)


def parse_submission(text: str, *, message: bytes = b"") -> Submission:
    """Return the submission that a hash holds, with the sealed envelope, which is kept outside of it."""
    fields: dict[str, Any] = json.loads(text)
    fields["id"] = ExperimentId(fields["id"])
    fields["resources"] = Resources(**fields["resources"])
    for name in ("submitted_at", "expires_at"):
        fields[name] = datetime.fromisoformat(fields[name])
    return Submission(**fields, message=message)


def _parse_instant(text: str) -> datetime | None:
    return datetime.fromtimestamp(int(text) / 1000, UTC) if text else None


def _parse_past(fields: dict[str, str]) -> PastAttempt:
    return PastAttempt(
        attempt=int(fields["attempt"]),
        token=int(fields["token"]),
        reason=Reason[fields["reason"]],
        detail=fields["detail"],
    )
