"""Telling whoever keeps books: numbered reports of an attempt, sent in order by a thread of their own.

Reports go to `<request queue>_reporting` only if somebody has created it. The broker may be away: what carries a state
is kept and sent later, what only tells progress gives way first when the outbox is full.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from jobqueue.brokers.base import Post
from jobqueue.codec import encode_report
from jobqueue.errors import BrokerUnavailable
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry, Progress, Report, Severity, TaskState
from jobqueue.routing import reporting_queue

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/vnd.jobqueue.report"
OUTBOX_REPORTS: Final = 10_000
RETRY_EVERY: Final = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class _Letter:
    queue: str
    body: bytes
    is_vital: bool


class Outbox:
    """Sends reports in the order they were given, for a whole worker process.

    Args:
        post: the broker's port.
    """

    def __init__(self, post: Post) -> None:
        self.dropped = 0
        self._post = post
        self._letters: deque[_Letter] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._send_all, name="reports", daemon=True)
        self._thread.start()

    def put(self, queue: str, report: Report, *, is_vital: bool) -> None:
        """Take a report; it is sent soon."""
        letter = _Letter(queue=reporting_queue(queue), body=encode_report(report), is_vital=is_vital)
        with self._changed:
            if len(self._letters) >= OUTBOX_REPORTS and not self._make_room(letter):
                return
            self._letters.append(letter)
            self._changed.notify_all()

    def flush(self, timeout: timedelta) -> bool:
        """Wait until all is sent; returns whether it was."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._letters, timeout.total_seconds())

    def close(self, timeout: timedelta) -> None:
        """Send what can be sent within `timeout`, then stop."""
        self.flush(timeout)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout.total_seconds())

    def _make_room(self, letter: _Letter) -> bool:
        victim = letter if not letter.is_vital else next((other for other in self._letters if not other.is_vital), None)
        if victim is None:
            return True
        self.dropped += 1
        if victim is not letter:
            self._letters.remove(victim)
        return victim is not letter

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._letters or self._is_closing)
                if self._is_closing:
                    return
                letter = self._letters[0]
            if self._send(letter):
                with self._changed:
                    if self._letters and self._letters[0] is letter:
                        self._letters.popleft()
                    self._changed.notify_all()

    def _send(self, letter: _Letter) -> bool:
        """Send one; returns False when it has to be tried again."""
        try:
            if not self._post.send(letter.queue, letter.body, content_type=CONTENT_TYPE):
                self.dropped += 1
        except BrokerUnavailable as error:
            log.warning("reports.broker_unavailable", extra={"waiting": len(self._letters), "error": error.message})
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing, RETRY_EVERY.total_seconds())
            return False
        return True


class Reporter:
    """Numbers the statements about one attempt.

    Args:
        outbox: what sends them.
        queue: the request queue that the experiment came from.
        experiment_id, attempt, token: whose statements.
        worker_id: who says it.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        queue: str,
        experiment_id: ExperimentId,
        worker_id: WorkerId,
        attempt: int = 0,
        token: int = 0,
    ) -> None:
        self._outbox = outbox
        self._queue = queue
        self._sequence = 0
        self._lock = threading.Lock()
        self._experiment_id = experiment_id
        self._worker_id = worker_id
        self._attempt = attempt
        self._token = token

    def entered(self, state: State) -> None:
        """Say that the attempt is in a state that is not final."""
        task_state = {State.RUNNING: TaskState.STARTED, State.FINALIZING: TaskState.STOPPING}
        self._tell(Progress(task_state=task_state.get(state, TaskState.PRESTART)), state=state)

    def progressed(self, progress_json: str) -> None:
        """Pass on what the experiment said of itself."""
        self._tell(Progress(task_state=TaskState.STARTED, json=progress_json), is_vital=False)

    def logged(self, message: str, *, severity: Severity = Severity.INFO) -> None:
        """Say something for people."""
        self._tell(LogEntry(message=message, severity=severity), is_vital=False)

    def ended(
        self,
        reason: Reason,
        *,
        state: State | None,
        sentence: str,
        exit_code: int | None = None,
        last_lines: tuple[str, ...] = (),
        manifest: str = "",
    ) -> None:
        """Say how the attempt ended; `state` is the final one, or None when another attempt follows."""
        if last_lines:
            self._tell(LogEntry(message="\n".join(last_lines), severity=Severity.INFO, fields={"kind": "last_lines"}))
        is_success = state is State.SUCCEEDED
        progress = Progress(
            task_state=TaskState.SUCCESS if is_success else TaskState.FAILED if state else TaskState.STOPPING,
            error="" if is_success else sentence,
            error_code=0 if is_success else exit_code or 0,
        )
        self._tell(
            progress,
            state=state or State.QUEUED,
            reason=reason,
            fault=reason.verdict.fault,
            exit_code=exit_code,
            manifest=manifest,
        )

    def _tell(
        self,
        payload: Progress | LogEntry,
        *,
        is_vital: bool = True,
        state: State | None = None,
        reason: Reason | None = None,
        fault: Fault | None = None,
        exit_code: int | None = None,
        manifest: str = "",
    ) -> None:
        with self._lock:
            report = Report(
                at=datetime.now(UTC),
                experiment_id=self._experiment_id,
                worker_id=self._worker_id,
                attempt=self._attempt,
                token=self._token,
                sequence=self._sequence,
                payload=payload,
                state=state,
                reason=reason,
                fault=fault,
                exit_code=exit_code,
                manifest=manifest,
            )
            self._sequence += 1
            self._outbox.put(self._queue, report, is_vital=is_vital)
