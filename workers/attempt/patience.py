"""Doing a step again and again while the server that it needs is away, for as long as that pays."""

from collections.abc import Callable
from typing import Final, TypeVar

import stamina

from jobqueue.errors import Unavailable

PATIENCE_SECONDS: Final = 300.0
Result = TypeVar("Result")


def patiently(error: type[Unavailable], step: Callable[[], Result], *, seconds: float = PATIENCE_SECONDS) -> Result:
    """Return what a step returns once it does not raise `error`, which is raised at last when the time is over."""
    return stamina.retry(on=error, attempts=None, timeout=seconds)(step)()
