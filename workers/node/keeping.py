"""Keeping one worker process for each slot: started, started again when it is lost, told what the server is told.

A worker that ends by itself with 0 was told to by an operator, or had no more to do, and stays away; any other end is
followed by a new start, later and later while it goes on. What a killed server leaves is killed by the kernel;
containers go on, and are adopted by the workers of the next one.
"""

import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = timedelta(seconds=1)
LONGEST_PAUSE: Final = timedelta(minutes=1)
# Whoever lived so long starts at the first pause again.
SETTLED: Final = timedelta(minutes=1)
EX_USAGE: Final = 2
EX_UNAVAILABLE: Final = 69
_KILLED: Final = 128
_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
_TOLD: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
_AWAITED: Final = _TOLD | {signal.SIGCHLD}


@dataclass(frozen=True, kw_only=True)
class Command:
    """How the worker of one slot is started."""

    slot: str
    words: Sequence[str]
    environ: Mapping[str, str]


class SlotWorker:
    """The process of one slot, over all of its starts. One thread only.

    Args:
        command: how it is started.
        first_pause, longest_pause: between an end and the next start, doubled each time.
        settled: so long it has to live for the first pause to come again.

    Attributes:
        status: how it ended last, as a shell would tell it; 0 while it never has.
        is_over: whether it is not to be started again.
    """

    def __init__(
        self,
        command: Command,
        *,
        first_pause: timedelta = FIRST_PAUSE,
        longest_pause: timedelta = LONGEST_PAUSE,
        settled: timedelta = SETTLED,
    ) -> None:
        self._command = command
        self._first_pause, self._longest_pause, self._settled = first_pause, longest_pause, settled
        self._pause = first_pause
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at_seconds = 0.0
        self._due_at_seconds = 0.0
        self._told: int | None = None
        self._is_proven = False
        self.status = 0
        self.is_over = False

    @property
    def due_in_seconds(self) -> float | None:
        """How long until it is to be started; None while it runs or is over."""
        if self._process is not None or self.is_over:
            return None
        return max(0.0, self._due_at_seconds - time.monotonic())

    @property
    def is_misconfigured(self) -> bool:
        """Whether a setting, or a word that Celery does not know, is all that it ever ended of."""
        return self.status in (EX_USAGE, EX_UNAVAILABLE) and not self._is_proven

    @property
    def is_failing(self) -> bool:
        """Whether it waits for its next start and has not settled for so long that the longest pause has come."""
        return self._process is None and not self.is_over and self._pause == self._longest_pause

    def start(self, prepare: Callable[[], None]) -> None:
        """Start it; `prepare` is called in the new process."""
        self._started_at_seconds = time.monotonic()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                self._command.words,
                env=self._command.environ,
                preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
                start_new_session=True,  # what a terminal tells all of its processes is passed on once
            )
        except OSError as error:
            self._note_end(EX_UNAVAILABLE, why=error.strerror or "")
        else:
            log.info("slot.started", extra={"slot": self._command.slot, "pid": self._process.pid})

    def tell(self, number: int) -> None:
        """Pass a signal on; it is not started again."""
        self._told = number
        if self._process is None:
            self.is_over = True
        else:
            self._process.send_signal(number)

    def look(self) -> None:
        """Find out whether it has ended, and when it is to be started again."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return
        self._process = None
        if code == 0 or (self._told is not None and -code == self._told):  # the latter: it was still starting
            self._note_end(0)
        else:
            self._note_end(_KILLED - code if code < 0 else code)

    def _note_end(self, status: int, *, why: str = "") -> None:
        self.status = status
        self.is_over = self._told is not None or status == 0
        said: dict[str, object] = {"slot": self._command.slot, "status": status}
        if self.is_over:
            log.info("slot.ended", extra=said)
            return
        if time.monotonic() - self._started_at_seconds >= self._settled.total_seconds():
            self._pause, self._is_proven = self._first_pause, True
        self._due_at_seconds = time.monotonic() + self._pause.total_seconds()
        said["again_in_seconds"] = self._pause.total_seconds()
        log.warning("slot.lost", extra=said | ({"error": why} if why else {}))
        self._pause = min(2 * self._pause, self._longest_pause)


def keep(workers: Sequence[SlotWorker]) -> int:
    """Keep the workers running until they are told to end, and return the worst of their exit statuses.

    When none of them could be started for want of a right setting, they are not tried again. Neither are those that
    fail again and again once all others have ended by themselves: they would keep a machine that has no more to do.
    Main thread only: it takes the signals.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    prepare = _make_prepare(mask)
    try:
        while not all(worker.is_over for worker in workers):
            _start_due(workers, prepare)
            told = _await_signal(workers)
            for worker in workers:
                worker.look()
            if all(worker.is_misconfigured for worker in workers) or _are_left_failing(workers):
                told = told or int(signal.SIGTERM)
            if told is not None:
                for worker in workers:
                    worker.tell(told)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return max((worker.status for worker in workers), default=0)


def _are_left_failing(workers: Sequence[SlotWorker]) -> bool:
    """Tell whether some have ended by themselves, and all others fail again and again."""
    return any(worker.is_over for worker in workers) and all(worker.is_over or worker.is_failing for worker in workers)


def _start_due(workers: Sequence[SlotWorker], prepare: Callable[[], None]) -> None:
    for worker in workers:
        if worker.due_in_seconds == 0:
            worker.start(prepare)


def _await_signal(workers: Sequence[SlotWorker]) -> int | None:
    """Return what is to be passed on; None when a worker may have ended, or is to be started."""
    due = [seconds for worker in workers if (seconds := worker.due_in_seconds) is not None]
    found = signal.sigtimedwait(_AWAITED, min(due)) if due else signal.sigwaitinfo(_AWAITED)
    if found is None or found.si_signo not in _TOLD:
        return None
    number = signal.Signals(found.si_signo)
    log.info("node.told", extra={"signal": number.name})
    # Celery would start a worker anew whose terminal has gone.
    return int(signal.SIGTERM if number is signal.SIGHUP else number)


def _make_prepare(mask: set[int]) -> Callable[[], None]:
    """Return what a new process does first: it takes signals again, and ends with this one."""
    prctl = ctypes.CDLL(None).prctl
    server = os.getpid()

    def prepare() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(_KILLED + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare
