"""Why an attempt ended: from its exit, and from an error."""

import errno
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest

from jobqueue.errors import (
    ArtifactRefused,
    BadEnvelope,
    ImagePullFailed,
    ImageRefused,
    InvalidSpec,
    NotFound,
    Problem,
    RegistryUnavailable,
    RuntimeFailure,
    StoreUnavailable,
    Superseded,
    Undecryptable,
    Untrusted,
)
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.resources import Resources
from workers.attempt.ending import FIRST_BACK_OFF, LAST_BACK_OFF, back_off, outcome_of_error, outcome_of_exit
from workers.attempt.logs import LogWriter
from workers.attempt.runtimes.base import Exit

CPU = Resources(cpus=1, memory_bytes=100 * 2**20, disk_bytes=2**30, shm_bytes=2**20)
GPU = Resources(cpus=1, memory_bytes=100 * 2**20, disk_bytes=2**30, shm_bytes=2**20, gpus=1)


@dataclass
class Logs:
    """What a writer of logs has found."""

    last_lines: tuple[str, ...] = ("last",)
    is_gpu_out_of_memory: bool = False


@pytest.mark.parametrize(
    ("ended", "resources", "logs", "reason", "detail"),
    [
        (Exit(code=0), CPU, Logs(), Reason.EXITED_ZERO, ""),
        (Exit(code=0), GPU, Logs(is_gpu_out_of_memory=True), Reason.EXITED_ZERO, ""),
        (Exit(code=1), CPU, Logs(), Reason.EXITED_NONZERO, "exit code 1"),
        (Exit(code=1), CPU, Logs(is_gpu_out_of_memory=True), Reason.GPU_OUT_OF_MEMORY, ""),
        (Exit(code=1), GPU, Logs(is_gpu_out_of_memory=True), Reason.GPU_OUT_OF_MEMORY, ""),
        (Exit(code=127, error="no such file"), CPU, Logs(), Reason.EXITED_NONZERO, "exit code 127, no such file"),
        (Exit(code=137), CPU, Logs(), Reason.EXITED_NONZERO, "exit code 137"),
        (Exit(code=137, error="limit"), CPU, Logs(), Reason.EXITED_NONZERO, "exit code 137, limit"),
        (Exit(code=137, is_out_of_memory=True), CPU, Logs(), Reason.OUT_OF_MEMORY, "the limit is 100 MiB"),
        (
            Exit(code=1, is_out_of_memory=True, memory_peak_bytes=2**27),
            GPU,
            Logs(is_gpu_out_of_memory=True),
            Reason.OUT_OF_MEMORY,
            "the limit is 100 MiB, its peak was 128 MiB",
        ),
    ],
)
def test_an_exit_has_one_reason(ended: Exit, resources: Resources, logs: Logs, reason: Reason, detail: str) -> None:
    outcome = judge(ended, resources=resources, logs=logs)
    assert (outcome.reason, outcome.detail) == (reason, detail)
    assert (outcome.exit_code, outcome.last_lines) == (ended.code, ("last",))


def judge(ended: Exit, *, resources: Resources = CPU, logs: Logs | None = None, **known: Any) -> Outcome:
    """Return what an exit means that nobody asked for, unless `known` says so."""
    given = {"stopped": None, "cancel_reason": None, "is_judged": True} | known
    return outcome_of_exit(ended, resources=resources, logs=cast("LogWriter", logs or Logs()), **given)


def test_what_was_told_to_end_ends_for_that_however_it_exits() -> None:
    why = Outcome(reason=Reason.TIMED_OUT, detail="its timeout is 1h")
    for ended in (Exit(code=0), Exit(code=143), Exit(code=137, is_out_of_memory=True)):
        outcome = judge(ended, stopped=why, cancel_reason=Reason.CANCELLED_BY_USER)
        assert (outcome.reason, outcome.detail, outcome.exit_code) == (why.reason, why.detail, ended.code)


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (Exit(code=143), Reason.QUEUE_DELETED),
        (Exit(code=137), Reason.QUEUE_DELETED),
        (Exit(code=0), Reason.EXITED_ZERO),
        (Exit(code=7), Reason.EXITED_NONZERO),
        (Exit(code=137, is_out_of_memory=True), Reason.OUT_OF_MEMORY),
    ],
)
def test_what_a_signal_ended_under_a_tombstone_was_cancelled(ended: Exit, reason: Reason) -> None:
    assert judge(ended, cancel_reason=Reason.QUEUE_DELETED, is_judged=False).reason is reason


@pytest.mark.parametrize(
    ("ended", "is_judged"), [(Exit(code=137), False), (Exit(code=137, is_from_outside=True), True)]
)
def test_what_somebody_else_may_have_killed_is_not_held_against_the_experiment(ended: Exit, *, is_judged: bool) -> None:
    outcome = judge(ended, is_judged=is_judged)
    assert (outcome.reason, outcome.detail) == (Reason.RUNTIME_FAILURE, "it was killed from outside")
    assert judge(Exit(code=1), is_judged=False).reason is Reason.EXITED_NONZERO


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Superseded("newer"), Reason.SUPERSEDED),
        (ImageRefused("none"), Reason.IMAGE_REFUSED),
        (ImagePullFailed("503"), Reason.IMAGE_PULL_FAILED),
        (RuntimeFailure("down"), Reason.RUNTIME_FAILURE),
        (StoreUnavailable("503"), Reason.STORE_UNAVAILABLE),
        (ArtifactRefused("too large"), Reason.INPUT_INVALID),
        (NotFound("no input"), Reason.INPUT_INVALID),
        (Undecryptable("another key"), Reason.UNDECRYPTABLE),
        (InvalidSpec([Problem(path="image", message="missing")]), Reason.BAD_SPEC),
        (RegistryUnavailable("silent"), Reason.RUNTIME_FAILURE),
        (Untrusted("sealed by another sender"), Reason.UNDECRYPTABLE),
        (BadEnvelope("opens, and is no spec"), Reason.BAD_SPEC),
        (OSError(errno.ENOSPC, "full"), Reason.NODE_DISK_FULL),
        (OSError(errno.EDQUOT, "full"), Reason.NODE_DISK_FULL),
        (OSError(errno.EACCES, "no"), Reason.RUNTIME_FAILURE),
        (MemoryError(), Reason.RUNTIME_FAILURE),
        (SystemExit(1), Reason.RUNTIME_FAILURE),
    ],
)
def test_an_error_has_one_reason(error: BaseException, reason: Reason) -> None:
    assert outcome_of_error(error).reason is reason


def test_a_foreign_errors_own_words_are_not_passed_on() -> None:
    assert outcome_of_error(ValueError("https://store/?signature=secret")).detail == "the worker met ValueError"


@pytest.mark.parametrize("failures", [0, 1, 3, 10, 100, 10**6])
def test_a_back_off_doubles_within_its_bounds(failures: int) -> None:
    longest = min(FIRST_BACK_OFF * 2 ** min(failures, 20), LAST_BACK_OFF)
    assert all(longest / 2 <= back_off(failures) <= longest for _ in range(100))
    assert back_off(failures) > timedelta(0)
