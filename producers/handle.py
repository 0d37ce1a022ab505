"""What a notebook holds of an experiment: a future that outlives the notebook, because it knows nothing but its id."""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final

from jobqueue.errors import ExperimentTimeout, JobqueueError, NotFound, RegistryUnavailable, StoreUnavailable
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import Record, Submission
from jobqueue.storage.markers import read_marker
from producers.causes import find_causes
from producers.connections import Connections
from producers.ending import apply_marker, make_error, mark_cancelled, without_message
from producers.logs import follow_log, open_source, print_log, read_log
from producers.outputs import Outputs, find_error, read_result
from producers.timeline import error_to_html, make_view, parse_progress, to_html
from producers.watching import OUTAGE, Watcher, parse_timeout

_CHECK_EVERY_SECONDS: Final = 1.0
_UNREAD: Final = object()


class Experiment(concurrent.futures.Future[Any]):
    """A submitted experiment: a `concurrent.futures.Future` that can also be watched, read and cancelled from anywhere.

    Made by `submit_experiment` and `get`, never by hand. It pickles to its id, which becomes a handle of a client of
    the same registry where there is one, else of the environment's settings. Everything that asks the registry raises
    `RegistryUnavailable` when that does not answer; who waits is told only after half a minute of silence.

    Attributes:
        id: the experiment's id, which is its Celery task id as well.
        outputs: the files that it left behind.
    """

    def __init__(
        self,
        experiment_id: ExperimentId,
        *,
        connections: Connections,
        watcher: Watcher,
        reopen: Callable[[str, str], "Experiment"],
    ) -> None:
        super().__init__()
        self.id = experiment_id
        self.outputs = Outputs(experiment_id, lambda: connections.store)
        self._connections, self._watcher, self._reopen = connections, watcher, reopen
        self._submission: Submission | None = None
        self._last: Record | None = None
        self._settling = threading.RLock()
        self._is_settled = self._has_callbacks = False
        self._value: Any = _UNREAD

    @property
    def name(self) -> str:
        """The name that it was given; empty when it was given none."""
        return (self._submission or self.look().submission).name

    @property
    def state(self) -> State:
        """Where it is now."""
        return self.look().state

    @property
    def reason(self) -> Reason | None:
        """Why it ended; before that, why its last attempt ended; None when none has."""
        return self.look().reason

    @property
    def attempt(self) -> int:
        """Which attempt is running or was the last one, counted from 1; 0 before the first."""
        return self.look().attempt

    @property
    def progress(self) -> dict[str, object]:
        """What it last said of itself, such as `{"progress": 0.62, "loss": 0.41}`; empty when it has said nothing."""
        return parse_progress(self.look().progress)

    def why(self) -> str:
        """Return where it is, and what keeps it from going on, one sentence to a line."""
        return "\n".join(find_causes(self.look(), self._connections))

    def look(self) -> Record:
        """Return all that the registry knows of it; once it is over, without asking again.

        Raises:
            NotFound: neither the registry nor the store knows it.
        """
        if self._last and self._last.state.is_final:
            return self._last
        try:
            record = self._connections.registry.experiments.get(self.id)
        except NotFound:
            record = self._look_into_store()
        self.accept(record)
        return record

    def introduce(self, submission: Submission) -> None:
        """Take what was submitted and never changes."""
        self._submission = without_message(submission)

    def accept(self, record: Record) -> None:
        """Take what the registry says; a final state settles the future."""
        self.introduce(record.submission)
        self._last = record
        if record.state.is_final:
            self.resolve(make_error(record))

    def _look_into_store(self) -> Record:
        """Return what the result marker says, for an experiment that the registry has forgotten."""
        marker = read_marker(self._connections.store, self.id) if self._submission else None
        if self._submission is None or marker is None:
            raise self._connections.unknown(self.id, is_wiped=self._submission is not None)
        return apply_marker(Record(submission=self._submission), marker)

    def settle(self) -> bool:
        """Look at the experiment, and return whether there is nothing more to learn: what the watcher calls."""
        with suppress(StoreUnavailable):
            try:
                return self.look().state.is_final
            except NotFound as error:
                if self._submission is None:  # there has never been one, and no waiting makes it
                    self.resolve(error)
        return self._is_settled

    def resolve(self, error: JobqueueError | None) -> None:
        """End the waiting of everybody, with success or with what ended the experiment or the asking."""
        with self._settling:
            if self._is_settled:
                return
            self._is_settled = True
            end = partial(self.set_exception, error) if error else partial(self.set_result, None)
            if not (self._has_callbacks and self._watcher.is_this_thread):
                end()
                return
        # A callback may wait for another experiment, whose end only the watcher's thread would see.
        threading.Thread(target=end, name="jobqueue-callbacks", daemon=True).start()

    def wait(self, timeout: float | str | timedelta | None = None) -> bool:
        """Wait until it is over, for at most `timeout` (seconds, or as in `30m`); return whether it is.

        Raises:
            InvalidSpec: the timeout is no duration.
            RegistryUnavailable: it has not answered for half a minute.
            NotFound: there has never been such an experiment.
            JobqueueError: the client of this handle has been closed.
        """
        seconds = parse_timeout(timeout)
        until = None if seconds is None else time.monotonic() + seconds
        if self._submission is None:
            self._look_patiently()
        while not super().done():
            left = _CHECK_EVERY_SECONDS if until is None else until - time.monotonic()
            if left <= 0:
                return False
            self._watcher.check()
            concurrent.futures.wait([self], timeout=min(left, _CHECK_EVERY_SECONDS))
        return self.look().state.is_final

    def result(self, timeout: float | str | timedelta | None = None) -> Any:
        """Wait until it is over, and return its `outputs/result.json`, parsed; `{"exit_code": 0}` when it wrote none.

        Args:
            timeout: at most so long: seconds, or as in `30m`; None: for ever.

        Raises:
            ExperimentFailed: with the reason, a hint, the exit code and the last lines.
            ExperimentCancelled: it was cancelled.
            ExperimentTimeout: it was not over in time; it goes on.
        """
        if error := self.exception(timeout):
            raise error
        if self._value is _UNREAD:
            self._value = read_result(self.outputs)
        return self._value

    def exception(self, timeout: float | str | timedelta | None = None) -> JobqueueError | None:
        """Wait until it is over, and return what `result` raises; None when it succeeded, as the store says.

        Raises:
            ExperimentTimeout: it was not over in time; it goes on.
            StoreUnavailable: it is over, and nobody can say whether it succeeded.
        """
        if not self.wait(timeout):
            raise ExperimentTimeout(f"{self.id} was not over within {parse_timeout(timeout):g} s")
        return find_error(self.look(), self.outputs)

    def running(self) -> bool:
        """Tell whether an attempt is being prepared, run or finished now."""
        state = self.look().state
        return state is not State.QUEUED and not state.is_final

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return super().done() and self.look().state is State.CANCELLED

    def cancel(self) -> bool:
        """Ask for its end; a running container gets SIGTERM first. Returns False when it was over already.

        Raises:
            NotFound: the registry does not know it.
        """
        try:
            state = self._connections.registry.experiments.cancel(self.id)
        except NotFound:
            raise self._connections.unknown(self.id) from None
        if state is State.CANCELLED:
            mark_cancelled(self.id, open_store=lambda: self._connections.store, look=self.look)
        return state is State.CANCELLED or not state.is_final

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call `fn` with this handle when the experiment is over, even when nobody else holds the handle."""
        self._watcher.keep(self)
        with self._settling:
            self._has_callbacks = True
        super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> Any:
        """Wait without blocking the event loop; who cancels this waiting does not cancel the experiment."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: object) -> None:
            with suppress(RuntimeError):  # the loop may have been closed meanwhile
                loop.call_soon_threadsafe(over.set)

        self.add_done_callback(wake)
        while not over.is_set():
            self._watcher.check()
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _CHECK_EVERY_SECONDS)
        return await asyncio.to_thread(self.result)

    def logs(self, *, follow: bool = False, stream: str = "stdout") -> Iterator[str]:
        """Return the lines that it printed, of the newest attempt, or of the one that counts once it is over.

        Args:
            follow: go on until it is over; a new attempt begins again with its first line.
            stream: `stdout` or `stderr`.

        Raises:
            InvalidSpec: there is no such stream.
        """
        source = open_source(self._connections, look=self._look_patiently, stream=stream)
        if not follow:
            return read_log(source, stream=stream)
        return (line for line in follow_log(source, stream=stream) if isinstance(line, str))

    def watch(self) -> None:
        """Print its lines and where it is, as they come, until it is over; Ctrl-C stops the watching alone."""
        with suppress(KeyboardInterrupt):
            source = open_source(self._connections, look=self._look_patiently, stream="stdout")
            print_log(source, stream="stdout")

    def _look_patiently(self) -> Record:
        until = time.monotonic() + OUTAGE.total_seconds()
        while True:
            try:
                return self.look()
            except RegistryUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(_CHECK_EVERY_SECONDS)

    def start_in_child(self) -> None:
        """Take new locks in a forked process, where a thread that is not there may hold the old ones."""
        self._condition = threading.Condition()
        self._settling = threading.RLock()

    def __reduce__(self) -> tuple[Callable[[str, str], "Experiment"], tuple[str, str]]:
        return self._reopen, (self.id, self._connections.site)

    def __copy__(self) -> "Experiment":
        return self  # as many as there are, it is one experiment

    def __deepcopy__(self, _: object) -> "Experiment":
        return self

    def __repr__(self) -> str:
        name = f" {self._submission.name!r}" if self._submission and self._submission.name else ""
        state = f" {self._last.state}" if self._last else ""
        return f"<Experiment {self.id}{name}{state}>"

    def _repr_html_(self) -> str:
        try:
            return to_html(make_view(self.look()))
        except JobqueueError as error:
            return error_to_html(self.id, error)
