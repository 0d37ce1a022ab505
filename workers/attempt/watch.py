"""Watching one running container: its deadline, its lease, its limits, and what others ask of it.

The deadline is kept here, by asking the engine with a timeout, never by an exception inside a loop that reads output.
"""

import logging
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.errors import JobqueueError, RuntimeFailure, Superseded
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.quantities import describe_size, format_duration
from jobqueue.registry.base import Leases
from jobqueue.spec import ExperimentSpec
from workers.attempt.disk_use import DiskMeter
from workers.attempt.lease import LeaseKeeper, Standing, clock_seconds
from workers.attempt.logs import LogWriter
from workers.attempt.patience import PATIENCE_SECONDS
from workers.attempt.progress import ProgressFile
from workers.attempt.reporting import Reporter
from workers.attempt.runtimes.base import Container, ContainerRuntime, Exit

log = logging.getLogger(__name__)

TICKS_PER_LEASE: Final = 12
LONGEST_TICK: Final = timedelta(seconds=1)
PROGRESS_EVERY: Final = timedelta(seconds=1)
DRAIN_OUTPUT: Final = timedelta(seconds=10)
DRAIN_TICK: Final = timedelta(milliseconds=50)
ENGINE_PATIENCE: Final = timedelta(minutes=10)


class ProgressRelay:
    """Tells the registry that the container runs, and passes the newest progress on, at most once a second.

    Args:
        file: where the experiment may write it.
        state: what the registry is told: an earlier worker of the attempt may have come further than RUNNING.

    Attributes:
        is_told: whether the registry knows that it runs, and the newest progress.
    """

    def __init__(
        self, leases: Leases, keeper: LeaseKeeper, reporter: Reporter, *, file: ProgressFile, state: State
    ) -> None:
        self.is_told = False
        self._leases, self._keeper, self._reporter = leases, keeper, reporter
        self._file, self._state = file, state
        self._newest = ""
        self._sent = ""
        self._sent_at = 0.0

    def poll(self) -> bool:
        """Take the newest one of the file; returns whether there was one."""
        newest = self._file.poll()
        if newest:
            self.offer(newest)
        return bool(newest)

    def offer(self, progress_json: str) -> None:
        """Take one; a newer one replaces it."""
        self._newest = progress_json

    def send(self, *, now: bool = False) -> None:
        """Pass on what is new when it is time, or `now`; a registry that is away is told at a later time."""
        is_new = self._newest != self._sent
        due = now or time.monotonic() - self._sent_at >= PROGRESS_EVERY.total_seconds()
        if not due or (self.is_told and not is_new):
            return
        self._sent, self._sent_at = self._newest, time.monotonic()
        if is_new:
            self._reporter.progressed(self._sent)
        self._tell()

    def _tell(self) -> None:
        try:
            self._leases.advance(self._keeper.lease, self._state, progress=self._sent or None)
        except JobqueueError:
            self.is_told = False
        else:
            self.is_told = True


class Watch:
    """One container from its start to its end.

    Args:
        container: started.
        grace: between SIGTERM and SIGKILL.
        keeper: of its lease; its file says when it was started and why it was told to end, maybe by an earlier worker.
        folder: its workspace, as the node sees it.

    Attributes:
        stopped: why it was told to end; None when it was not.
        is_judged: after `run`, whether nothing but itself can have ended it: no engine that was away meanwhile, and no
            newer attempt, which removes what an older one has left.
    """

    def __init__(
        self,
        container: Container,
        *,
        runtime: ContainerRuntime,
        spec: ExperimentSpec,
        keeper: LeaseKeeper,
        logs: LogWriter,
        progress: ProgressRelay,
        grace: timedelta,
        folder: Path,
    ) -> None:
        self.stopped: Outcome | None = None
        self.is_judged = True
        self._asked: Reason | None = None
        self._container, self._runtime, self._spec = container, runtime, spec
        self._keeper, self._logs = keeper, logs
        self._progress = progress
        self._grace, self._tick = grace, min(keeper.ttl / TICKS_PER_LEASE, LONGEST_TICK)
        self._is_paused = False
        self._lapses = 0
        self._file = keeper.file
        self._disk = DiskMeter(folder, limit_bytes=spec.disk)
        self._follower = threading.Thread(target=self._follow, name="output", daemon=True)

    def ask(self, reason: Reason) -> None:
        """Ask for its end; the first reason stays. Any thread."""
        self._asked = self._asked or reason

    def run(self) -> Exit:
        """Return how it ended, all of its output taken.

        Raises:
            Superseded: the lease is lost; it still runs.
            RuntimeFailure: the engine has lost it.
        """
        self._follower.start()
        self._disk.start()
        try:
            ended = self._await_end()
        finally:
            self._disk.close()
        self.is_judged &= self._keeper.standing in (Standing.HELD, Standing.CANCELLED)
        self._drain_output()
        self._take_progress(now=True)
        return ended

    def _await_end(self) -> Exit:
        ended: Exit | None = None
        while ended is None:
            try:
                self._look()
                ended = self._container.wait(self._tick)
            except RuntimeFailure:
                if self._engine_answers() or self._is_overdue():
                    raise
                self.is_judged = False
                time.sleep(self._tick.total_seconds())
        return ended

    def _follow(self) -> None:
        try:
            self._container.follow(self._logs.write)
        except RuntimeFailure as error:
            log.warning("output.lost", extra={"error": error.message})

    def _drain_output(self) -> None:
        """Take what it had still to say, for a moment; a store that is behind gets the time that outputs get."""
        patience_ends_at = time.monotonic() + PATIENCE_SECONDS
        ends_at = time.monotonic() + DRAIN_OUTPUT.total_seconds()
        while self._follower.is_alive() and time.monotonic() < min(ends_at, patience_ends_at):
            self._follower.join(DRAIN_TICK.total_seconds())
            if self._logs.is_behind and not (self.stopped and self.stopped.reason is Reason.DRAINED):
                ends_at = time.monotonic() + DRAIN_OUTPUT.total_seconds()

    def _engine_answers(self) -> bool:
        """Tell whether it is the container that is gone, not the engine.

        An engine that is down may have left it running, so the attempt goes on until the engine answers again, or
        until its timeout is over and the engine has still not come back.
        """
        try:
            self._runtime.check()
        except RuntimeFailure as error:
            log.warning("engine.unreachable", extra={"error": error.message})
            return False
        return True

    def _is_overdue(self) -> bool:
        allowed = self._spec.timeout + ENGINE_PATIENCE
        return self._age_seconds >= allowed.total_seconds()

    @property
    def _age_seconds(self) -> float:
        return clock_seconds() - self._file.kept.started_at_seconds

    def _look(self) -> None:
        standing = self._keeper.standing
        if standing is Standing.LOST:
            raise Superseded("a newer attempt holds the lease")
        self._freeze(standing is Standing.IN_DOUBT)
        self._take_progress()
        if self.stopped is not None:
            return
        begun = self._file.kept.stopping
        if begun:
            self._stop(begun.reason, begun.detail)
        # What is frozen waits for its lease to be sure again, and others who ask for its end cannot wait.
        elif self._asked or not self._is_paused:
            self._decide(standing)

    def _freeze(self, in_doubt: bool) -> None:  # noqa: FBT001 - a state, not an option
        lapses = self._keeper.lapses
        # After a lapse the guard may have frozen it, or an earlier worker.
        if in_doubt == self._is_paused and (in_doubt or lapses == self._lapses):
            return
        if in_doubt:
            self._container.pause()
        else:
            self._container.resume()
            self._logs.mark_alive()
            self._lapses = lapses
        self._is_paused = in_doubt
        log.warning("container.frozen" if in_doubt else "container.thawed")

    def _take_progress(self, *, now: bool = False) -> None:
        if self._progress.poll():
            self._logs.mark_alive()
        self._progress.send(now=now)

    def _decide(self, standing: Standing) -> None:
        if standing is Standing.CANCELLED:
            self._stop(self._keeper.cancel_reason or Reason.CANCELLED_BY_USER)
        elif self._asked:
            self._stop(self._asked)
        elif self._age_seconds >= self._spec.timeout.total_seconds():
            self._stop(Reason.TIMED_OUT, f"its timeout is {format_duration(self._spec.timeout)}")
        elif self._logs.refusal:
            self._stop(Reason.INPUT_INVALID, f"its output is refused: {self._logs.refusal}")
        elif self._logs.is_over_limit:
            self._stop(Reason.LIMIT_EXCEEDED, f"more than {describe_size(self._logs.limit_bytes)} of output")
        elif self._disk.excess:
            # At once: in a grace it would go on to fill the disk.
            self._stop(Reason.LIMIT_EXCEEDED, self._disk.excess, grace=timedelta(0))
        elif self._spec.stall_timeout and self._logs.silence_seconds >= self._spec.stall_timeout.total_seconds():
            self._stop(Reason.STALLED, f"silent for {format_duration(self._spec.stall_timeout)}")

    def _stop(self, reason: Reason, detail: str = "", *, grace: timedelta | None = None) -> None:
        """Have it end for a reason that stays, also for a worker that takes over; what has ended by itself has none."""
        if not self._file.kept.stopping and self._container.wait(timedelta(0)):
            return
        log.info("container.stopping", extra={"reason": reason.name})
        why = Outcome(reason=reason, detail=detail)
        # First, because its exit says nothing to a worker that takes over.
        with suppress(OSError):
            self._file.update(stopping=why)
        # Thawed it could run beside another attempt: what is frozen is killed as it is.
        self._container.stop(timedelta(0) if self._is_paused else self._grace if grace is None else grace)
        self.stopped = why
