"""What runs attempts for Celery: threads, so that heartbeats and control go on while containers run.

Every callback of Celery's is called on the main thread, woken through a pipe, because acknowledging is not safe on
another one. No `BaseException` of a task can end a thread or lose a slot. A stop waits for what runs without stopping
the heartbeats, hands it back when the grace is over, and at once when asked a second time.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from kombu.asynchronous import get_event_loop

from workers.bootstrap import Node, node_of

log = logging.getLogger(__name__)

JOIN_TICK_SECONDS: Final = 0.1
HAND_BACK_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class _Job:
    target: Callable[..., Any]
    args: tuple[Any, ...]
    on_end: Callable[[Any], None]
    on_error: Callable[[Any], None]


class SlotPool(BasePool):
    """Runs at most `limit` tasks, each on a thread of its own.

    Args:
        limit: how many places; one for a slot with a device.

    Attributes:
        busy: how many of them are taken.
        on_free_place: called on the main thread after each end.
    """

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self.busy = 0
        self.on_free_place: Callable[[], None] = lambda: None
        self._threads: list[threading.Thread] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def on_start(self) -> None:
        """Start the places."""
        for place in range(self.limit):
            thread = threading.Thread(target=self._serve, name=f"place-{place}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def register_with_event_loop(self, loop: Any) -> None:
        """Let ends wake the main loop."""
        loop.add_reader(self._wake_read, self._on_wake)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        error_callback: Callable[[Any], None] | None = None,
        **_: Any,
    ) -> None:
        """Take a task; called on the main thread."""
        del kwargs
        if callback is None or error_callback is None:
            raise TypeError("a task without callbacks cannot be acknowledged")
        self.busy += 1
        self._jobs.put(_Job(target=target, args=tuple(args), on_end=callback, on_error=error_callback))
        if accept_callback:
            accept_callback(os.getpid(), time.monotonic())

    def on_stop(self) -> None:
        """Let what runs come to its end, within the grace; then hand it back."""
        node = node_of(self.app)
        deadline = time.monotonic() + node.settings.grace.total_seconds()
        while (self.busy or node.adopted) and time.monotonic() < deadline and not node.is_hurried:
            self._turn()
        self._hand_back(node)

    def on_terminate(self) -> None:
        """Hand back at once what runs."""
        self._hand_back(node_of(self.app))

    def _hand_back(self, node: Node) -> None:
        node.drain()
        deadline = time.monotonic() + node.settings.grace.total_seconds() + HAND_BACK_SECONDS
        while (self.busy or node.adopted) and time.monotonic() < deadline:
            self._turn()
        for _ in self._threads:
            self._jobs.put(None)

    def _turn(self) -> None:
        """Do what the main loop does, for a moment: timers, and with them the heartbeats, and the ends of tasks."""
        loop = get_event_loop()
        if loop is not None:
            loop.fire_timers()
        self._call_back()
        time.sleep(JOIN_TICK_SECONDS)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._done.append(_run(job))
            os.write(self._wake_write, b"\0")

    def _on_wake(self) -> None:
        _empty(self._wake_read)
        self._call_back()

    def _call_back(self) -> None:
        while self._done:
            self.busy -= 1
            for call in (self._done.popleft(), self.on_free_place):
                try:
                    call()
                except Exception:  # the edge of the main loop, and of a stop
                    log.exception("delivery.callback_failed")

    def _get_info(self) -> dict[str, Any]:
        return {
            "implementation": f"{__name__}:{type(self).__name__}",
            "max-concurrency": self.limit,
            "busy": self.busy,
        }


def _empty(handle: int) -> None:
    """Empty a non-blocking pipe."""
    try:
        while os.read(handle, 1024):
            continue
    except BlockingIOError:
        return


def _run(job: _Job) -> Callable[[], None]:
    """Run one task and return what is to be called on the main thread."""
    try:
        result = job.target(*job.args)
    except BaseException as error:  # noqa: BLE001 - whatever a task raises, its place must live on
        trouble = ExceptionInfo((type(error), error, error.__traceback__), internal=True)
        return lambda: job.on_error(trouble)
    return lambda: job.on_end(result)
