"""Doing a step that may take long on another thread; it is left behind when the attempt should not go on."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


def run_aside(step: Callable[[], Result], *, check: Callable[[], object], every_seconds: float) -> Result:
    """Return what a step returns, or raise what it raises, or what `check` raises before it is done."""
    future: Future[Result] = Future()
    threading.Thread(target=_fulfil, args=(future, step), name="step", daemon=True).start()
    while not wait([future], timeout=every_seconds).done:
        check()
    return future.result()


def _fulfil(future: "Future[Result]", step: Callable[[], Result]) -> None:
    try:
        future.set_result(step())
    except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
        future.set_exception(error)
