"""Why an attempt ended, as a reason of the table: from an exit, and from an error."""

import errno
import random
from dataclasses import replace
from datetime import timedelta
from typing import Final

from jobqueue.errors import (
    ArtifactRefused,
    BadEnvelope,
    DiskFull,
    ImagePullFailed,
    ImageRefused,
    InvalidSpec,
    JobqueueError,
    KeyRefused,
    NotFound,
    Refused,
    RuntimeFailure,
    StoreUnavailable,
    Superseded,
)
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.quantities import describe_size
from jobqueue.resources import Resources
from workers.attempt.logs import LogWriter
from workers.attempt.runtimes.base import Exit

FIRST_BACK_OFF: Final = timedelta(seconds=5)
LAST_BACK_OFF: Final = timedelta(minutes=5)
_KILLED: Final = 137
_TERMINATED: Final = 143

_REASONS: Final[tuple[tuple[type[JobqueueError], Reason], ...]] = (
    (Superseded, Reason.SUPERSEDED),
    (ImageRefused, Reason.IMAGE_REFUSED),
    (ImagePullFailed, Reason.IMAGE_PULL_FAILED),
    (DiskFull, Reason.NODE_DISK_FULL),
    (RuntimeFailure, Reason.RUNTIME_FAILURE),
    (StoreUnavailable, Reason.STORE_UNAVAILABLE),
    (ArtifactRefused, Reason.INPUT_INVALID),
    (NotFound, Reason.INPUT_INVALID),
    (InvalidSpec, Reason.BAD_SPEC),
    # Of what `open_sealed` refuses: it opened and is no spec; or it is not for this node, or not of its sender.
    (BadEnvelope, Reason.BAD_SPEC),
    (Refused, Reason.UNDECRYPTABLE),
    # This node's keys are in disorder; another node's may not be.
    (KeyRefused, Reason.DOES_NOT_FIT),
)


def outcome_of_exit(
    ended: Exit,
    *,
    stopped: Outcome | None,
    cancel_reason: Reason | None,
    is_judged: bool,
    resources: Resources,
    logs: LogWriter,
) -> Outcome:
    """Return what an exit means, whichever worker of the attempt sees it.

    Args:
        ended: as the engine tells it.
        stopped: why it was told to end, if it was: then its exit decides nothing.
        cancel_reason: of the experiment's tombstone, if there is one: what ended as of a stop was stopped for it.
        is_judged: whether nothing but the experiment itself, or its limits, can have ended it.
        resources: its limits.
        logs: what it has said.
    """
    if stopped:
        why = stopped
    elif cancel_reason and ended.code in (_TERMINATED, _KILLED) and not ended.is_out_of_memory:
        why = Outcome(reason=cancel_reason)
    else:
        reason, detail = _read_exit(ended, is_judged=is_judged, resources=resources, logs=logs)
        why = Outcome(reason=reason, detail=detail)
    return replace(why, exit_code=ended.code, last_lines=logs.last_lines)


def _read_exit(ended: Exit, *, is_judged: bool, resources: Resources, logs: LogWriter) -> tuple[Reason, str]:
    if ended.code == 0:
        return Reason.EXITED_ZERO, ""
    if ended.is_out_of_memory:
        peak = f", its peak was {describe_size(ended.memory_peak_bytes)}" if ended.memory_peak_bytes else ""
        return Reason.OUT_OF_MEMORY, f"the limit is {describe_size(resources.memory_bytes)}{peak}"
    if logs.is_gpu_out_of_memory:
        return Reason.GPU_OUT_OF_MEMORY, ""
    if ended.code == _KILLED and not ended.error and (ended.is_from_outside or not is_judged):
        return Reason.RUNTIME_FAILURE, "it was killed from outside"
    return Reason.EXITED_NONZERO, f"exit code {ended.code}" + (f", {ended.error}" if ended.error else "")


def outcome_of_error(error: BaseException) -> Outcome:
    """Return what an error of the node's own steps means for the attempt."""
    if isinstance(error, JobqueueError):
        reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.RUNTIME_FAILURE)
        return Outcome(reason=reason, detail=error.message)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Outcome(reason=Reason.NODE_DISK_FULL)
    return Outcome(reason=Reason.RUNTIME_FAILURE, detail=f"the worker met {type(error).__name__}")


def back_off(failures: int) -> timedelta:
    """Return how long to wait before the next attempt: doubling, bounded, jittered by half."""
    longest = min(FIRST_BACK_OFF * 2 ** min(failures, 10), LAST_BACK_OFF)
    return timedelta(seconds=random.uniform(0.5, 1.0) * longest.total_seconds())  # noqa: S311 - spreads load
