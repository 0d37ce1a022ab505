"""Doing a step again and again while the server that it needs is away, for as long as that pays."""

import logging
from collections.abc import Callable
from typing import Final, TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from jobqueue.errors import JobqueueError, Unavailable

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 300.0
Result = TypeVar("Result")


def patiently(error: type[Unavailable], step: Callable[[], Result], *, seconds: float = PATIENCE_SECONDS) -> Result:
    """Return what a step returns once it does not raise `error`, which is raised at last when the time is over."""
    return stamina.retry(on=error, attempts=None, timeout=seconds)(step)()


def log_retries() -> None:
    """Log each retry of this process as we log, without the step's arguments: they could hold secrets."""
    set_on_retry_hooks([_log_retry])


def _log_retry(details: RetryDetails) -> None:
    caused_by = details.caused_by
    error = caused_by.message if isinstance(caused_by, JobqueueError) else type(caused_by).__name__
    fields = {"error": error, "retry": details.retry_num, "wait_seconds": round(details.wait_for, 2)}
    log.warning("step.retried", extra=fields)
