"""One thread that learns which experiments are over, for all handles of a client.

A handle is a `concurrent.futures.Future`, and whoever waits on several of them waits on their locks: somebody has to
ask. One thread asks for all in one round trip, often while an experiment is young, seldom when it is old, and never
more than a part of its time.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol

from jobqueue.errors import ArtifactRefused, InvalidSpec, JobqueueError, Problem, Unavailable
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import State
from jobqueue.quantities import is_number, parse_duration

log = logging.getLogger(__name__)

SHORTEST: Final = timedelta(milliseconds=10)
LONGEST: Final = timedelta(seconds=1)
OUTAGE: Final = timedelta(seconds=30)
# A thread costs more than an experiment's submission: it stays a moment for the next one.
LINGER: Final = timedelta(seconds=1)
_SHARE_OF_AGE: Final = 0.05
_SHARE_OF_TIME: Final = 0.1
_LONGEST_PAUSE: Final = timedelta(seconds=5)
_BATCH: Final = 500


def parse_timeout(timeout: object) -> float | None:
    """Return for how many seconds to wait at most; None: for ever.

    Args:
        timeout: seconds, a timedelta, or a text such as `30m`; what is below 0 has passed, infinity is for ever.

    Raises:
        InvalidSpec: it is none of them.
    """
    if timeout is None or timeout == float("inf"):
        return None
    if is_number(timeout) and timeout < 0:
        return 0.0
    try:
        return parse_duration(timeout).total_seconds()
    except ValueError as error:
        raise InvalidSpec([Problem(path="timeout", message=str(error))]) from None


class Watched(Protocol):
    """What is told that its experiment may be over."""

    @property
    def id(self) -> ExperimentId:
        """Which experiment."""
        ...

    def settle(self) -> bool:
        """Look at the experiment, and return whether there is nothing more to learn."""
        ...

    def resolve(self, error: JobqueueError) -> None:
        """Tell whoever waits that nothing more will be learned."""
        ...


class _Entry:
    """One handle, when its experiment was first watched, and when to ask for it again (monotonic seconds)."""

    def __init__(self, watched: Watched) -> None:
        self.watched = weakref.ref(watched)
        self.kept: Watched | None = None
        self.since = time.monotonic()
        self.due = self.since
        self.postpone(self.since)

    def postpone(self, now: float) -> None:
        wanted = (now - self.since) * _SHARE_OF_AGE
        self.due = now + min(LONGEST.total_seconds(), max(SHORTEST.total_seconds(), wanted))


class Watcher:
    """Watches experiments until each is over; its daemon thread ends soon after the last one.

    Args:
        states: asks where experiments are, in one round trip; one that it does not know is left out.
    """

    def __init__(self, states: Callable[[list[ExperimentId]], dict[ExperimentId, State]]) -> None:
        self._states = states
        self._begin()

    def _begin(self) -> None:
        self._entries: dict[ExperimentId, _Entry] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failing_since: float | None = None
        self._error: Unavailable | None = None
        self._is_closed = False
        self._wakes_at = 0.0

    def add(self, watched: Watched) -> None:
        """Watch an experiment for as long as somebody holds its handle."""
        with self._changed:
            entry = self._entries[watched.id] = _Entry(watched)
            if self._is_closed:
                return
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="jobqueue-watcher", daemon=True)
                self._thread.start()
            elif entry.due < self._wakes_at:
                self._changed.notify()

    def keep(self, watched: Watched) -> None:
        """Hold on to a handle that somebody has given a callback, until its experiment is over."""
        with self._changed:
            if entry := self._entries.get(watched.id):
                entry.kept = watched

    @property
    def is_this_thread(self) -> bool:
        """Tell whether the caller is the thread that asks: it must not wait for what only it can see."""
        return threading.current_thread() is self._thread

    def check(self) -> None:
        """Return when the registry answers, or has not been silent for long.

        Raises:
            RegistryUnavailable: it has not answered for a while.
        """
        with self._changed:
            since, error = self._failing_since, self._error
        if error and since is not None and time.monotonic() - since >= OUTAGE.total_seconds():
            raise error.with_traceback(None)

    def start_in_child(self) -> None:
        """Begin anew in a forked process, where the thread is not."""
        watched = [entry.watched() for entry in self._entries.values()]
        self._begin()
        for handle in watched:
            if handle is not None:
                self.add(handle)

    def close(self) -> None:
        """Stop watching; who still waits is told."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread, entries = self._thread, list(self._entries.values())
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for watched in (entry.watched() for entry in entries):
            if watched is not None:
                watched.resolve(JobqueueError("this client has been closed", hint="make another one: Client()"))

    def _run(self) -> None:
        while due := self._next():
            began = time.monotonic()
            over = self._ask(due)
            now = time.monotonic()
            with self._changed:
                for experiment_id in over:
                    self._entries.pop(experiment_id, None)
                for experiment_id in due:
                    if entry := self._entries.get(experiment_id):
                        entry.postpone(now)
                pause = self._pause(now - began)
                self._changed.wait_for(lambda: self._is_closed, timeout=pause)

    def _pause(self, asked_seconds: float) -> float:
        """Return for how many seconds a registry is left alone that took so long; one that is silent has no work."""
        if self._error is not None:
            return LONGEST.total_seconds()
        return min(asked_seconds / _SHARE_OF_TIME, _LONGEST_PAUSE.total_seconds())

    def _next(self) -> list[ExperimentId]:
        """Wait until some experiments are due and return them; nothing when there is nothing more to watch."""
        with self._changed:
            idle_since = time.monotonic()
            while not self._is_closed:
                now = time.monotonic()
                self._entries = {key: entry for key, entry in self._entries.items() if entry.watched() is not None}
                if due := [key for key, entry in self._entries.items() if entry.due <= now]:
                    return due
                if self._entries:
                    idle_since = now
                elif now - idle_since >= LINGER.total_seconds():
                    break
                soonest = min((entry.due for entry in self._entries.values()), default=now + LINGER.total_seconds())
                self._sleep_until(max(soonest, now + SHORTEST.total_seconds()))
            self._thread = None
            return []

    def _sleep_until(self, wakes_at: float) -> None:
        self._wakes_at = wakes_at
        self._changed.wait(wakes_at - time.monotonic())
        self._wakes_at = 0.0

    def _ask(self, due: list[ExperimentId]) -> list[ExperimentId]:
        over: list[ExperimentId] = []
        try:
            for start in range(0, len(due), _BATCH):
                batch = due[start : start + _BATCH]
                states = self._states(batch)
                unsure = [key for key in batch if key not in states or states[key].is_final]
                over += [key for key in unsure if self._settle(key)]
        except Unavailable as error:
            self._note(error)
        except Exception:  # the thread's outer edge: one strange answer must not leave every handle waiting for ever
            log.exception("watcher.failed experiments=%d", len(due))
        else:
            self._note(None)
        return over

    def _settle(self, experiment_id: ExperimentId) -> bool:
        with self._changed:
            entry = self._entries.get(experiment_id)
        watched = entry.watched() if entry else None
        if watched is None:
            return True
        try:
            return watched.settle()
        except ArtifactRefused as error:  # what lies where its end is told is no marker, and none will be
            watched.resolve(error)
            return True

    def _note(self, error: Unavailable | None) -> None:
        with self._changed:
            self._error = error
            if error is None:
                self._failing_since = None
            elif self._failing_since is None:
                self._failing_since = time.monotonic()
