"""Telling whoever keeps books: numbered reports of an attempt, sent in order by a thread of their own.

Reports go to `<request queue>_reporting` only if somebody has created it. The broker may be away, and the worker may be
killed meanwhile: reports wait on disk. What carries a state is always kept; what only tells progress is not, when there
is much already. They are signed when they leave, and sealed where somebody has named a key for that.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from jobqueue.brokers.base import Post
from jobqueue.errors import BrokerUnavailable, KeyRefused
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.keys import KeyRing, SealingPublicKey
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry, Progress, Report, Severity, TaskState
from jobqueue.routing import reporting_queue
from jobqueue.sealed_report import close_report
from workers.attempt.answers import Answers, shorten
from workers.attempt.spool import Spool, UnreadableLetterError

log = logging.getLogger(__name__)

SPOOL_REPORTS: Final = 10_000
SPOOL_BYTES: Final = 64 * 2**20
RETRY_EVERY: Final = timedelta(seconds=1)
LOG_EVERY: Final = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Addressee:
    """Whom the reports on an experiment are for.

    Attributes:
        queue: the request queue that it came from.
        reporting_key: what its sender wants reports sealed to; None: what the node's keys name, if anything.
        sender_key_id: whose it is.
    """

    queue: str
    reporting_key: SealingPublicKey | None = None
    sender_key_id: str = ""


class Outbox:
    """Sends reports in the order they were given, for a whole worker process, and what an earlier one could not send.

    Args:
        post: the broker's port.
        folder: where reports wait; of this worker alone, and the same each time that it starts.
        keys: what they are signed with and sealed to.

    Attributes:
        answers: how often each sender was told that a message of its is refused.
        dropped: how many were not kept because there were too many, or not sent because nobody has made the queue.

    Raises:
        InvalidSetting: on construction: another process has the folder, or it cannot be used.
    """

    def __init__(self, post: Post, folder: Path, *, keys: KeyRing) -> None:
        self.answers = Answers()
        self.dropped = 0
        self._post = post
        self._keys = keys
        self._spool = Spool(folder)
        self._changed = threading.Condition()
        self._is_closing = False
        self._logged_at: float | None = None
        self._thread = threading.Thread(target=self._send_all, name="reports", daemon=True)
        self._thread.start()

    def put(
        self,
        report: Report,
        *,
        is_vital: bool,
        reporting_key: SealingPublicKey | None = None,
        on_kept: Callable[[], object] = lambda: None,
    ) -> bool:
        """Take a report; when this returns True it is on disk, and it is sent soon.

        Args:
            report: numbered; names the request queue that the experiment came from.
            reporting_key: what it is to be sealed to; None: what the keys name for the queue, if anything.
            is_vital: it is kept however many wait already.
            on_kept: called when it is on disk, before it may be sent.

        Returns:
            Whether it was kept; the number of one that was not is to be given to the next.
        """
        with self._changed:
            if not is_vital and (len(self._spool) >= SPOOL_REPORTS or self._spool.size_bytes >= SPOOL_BYTES):
                self._count_dropped("too many wait for the broker")
                return False
            self._spool.add(report, reporting_key=reporting_key)
            on_kept()
            self._changed.notify_all()
            return True

    def next_sequence(self, attempt_id: str) -> int:
        """Return the number that comes after those of an attempt that an earlier process left; 0 where it left none."""
        return self._spool.next_sequence(attempt_id)

    def flush(self, timeout: timedelta) -> bool:
        """Wait until all is sent; returns whether it was."""
        with self._changed:
            return self._changed.wait_for(lambda: not len(self._spool), timeout.total_seconds())

    def close(self, timeout: timedelta) -> None:
        """Send what can be sent within `timeout`, then stop; the rest is sent by the next process of this name."""
        self.flush(timeout)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout.total_seconds())
        if not self._thread.is_alive():
            self._spool.close()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._spool) or self._is_closing)
                if self._is_closing:
                    return
            try:
                self._send_first()
            except BrokerUnavailable as error:
                log.warning("reports.broker_unavailable", extra={"waiting": len(self._spool), "error": error.message})
                self._pause()
            except KeyRefused as error:  # none leaves unsigned, or readable by everybody, because a key is in disorder
                log.warning("reports.key_refused", extra={"waiting": len(self._spool), "error": error.message})
                self._pause()
            except Exception as error:  # the edge of a thread: no report may keep all others back for ever
                log.exception("reports.not_sendable")
                self._set_aside(type(error).__name__)

    def _send_first(self) -> None:
        """Send the oldest one; it stays the first until the broker has it."""
        try:
            with self._changed:
                letter = self._spool.read(self._spool.first)
        except UnreadableLetterError as error:
            self._set_aside(str(error))
            return
        content_type, body = close_report(
            letter.report, queue=letter.queue, keys=self._keys, reporting_key=letter.reporting_key
        )
        queue = reporting_queue(letter.queue)
        is_sent = self._post.send(queue, body, content_type=content_type)
        with self._changed:
            self._spool.remove()
            if not is_sent:
                self._count_dropped(f"there is no queue {queue}")
            self._changed.notify_all()

    def _set_aside(self, why: str) -> None:
        with self._changed:
            self._spool.set_aside(why)
            self._changed.notify_all()

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, RETRY_EVERY.total_seconds())

    def _count_dropped(self, why: str) -> None:
        """Count one; say so now and then."""
        self.dropped += 1
        if self._logged_at is None or time.monotonic() - self._logged_at >= LOG_EVERY.total_seconds():
            self._logged_at = time.monotonic()
            log.info("reports.dropped", extra={"why": why, "total": self.dropped})


class Reporter:
    """Numbers the statements about one attempt, those that are kept, without a gap.

    Args:
        outbox: what sends them.
        to: whom they are for.
        experiment_id, attempt, token: whose statements.
        worker_id: who says it.
        told: how many were numbered by an earlier worker of this attempt.
        is_repeating: whether that one may have told what comes now; it has the same numbers then, and readers drop it.
        on_number: called with how many are numbered, before the newest one may be sent.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        to: Addressee,
        experiment_id: ExperimentId,
        worker_id: WorkerId,
        attempt: int = 0,
        token: int = 0,
        told: int = 0,
        is_repeating: bool = False,
        on_number: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._outbox = outbox
        self._to = to
        self._sequence = told
        self._on_number = on_number
        self._lock = threading.Lock()
        self._experiment_id = experiment_id
        self._worker_id = worker_id
        self._attempt = attempt
        self._token = token
        # The earlier worker may have been killed between keeping a report and saying that it was numbered.
        if told and not is_repeating:
            self._sequence = max(told, outbox.next_sequence(f"{experiment_id}-{attempt}-{token}"))

    def entered(self, state: State) -> None:
        """Say that the attempt is in a state that is not final."""
        task_state = {State.RUNNING: TaskState.STARTED, State.FINALIZING: TaskState.STOPPING}
        self._tell(Progress(task_state=task_state.get(state, TaskState.PRESTART)), state=state)

    def progressed(self, progress_json: str) -> None:
        """Pass on what the experiment said of itself."""
        self._tell(Progress(task_state=TaskState.STARTED, json=progress_json), is_vital=False)

    def logged(self, message: str) -> None:
        """Say something for people."""
        self._tell(LogEntry(message=message, severity=Severity.INFO), is_vital=False)

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
        """Say how the attempt ended, unless nobody is to be told; `state` is final, or None when another follows."""
        if not self._outbox.answers.may_tell(reason, self._to.sender_key_id):
            return
        if last_lines:
            self._tell(LogEntry(message="\n".join(last_lines), severity=Severity.INFO, fields={"kind": "last_lines"}))
        is_success = state is State.SUCCEEDED
        progress = Progress(
            task_state=TaskState.SUCCESS if is_success else TaskState.FAILED if state else TaskState.STOPPING,
            error="" if is_success else shorten(sentence),
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

    def refused(self, reason: Reason, sentence: str) -> None:
        """Say that a message of a trusted sender is refused before there is an experiment; only so many are told."""
        if self._outbox.answers.may_tell(reason, self._to.sender_key_id):
            progress = Progress(task_state=TaskState.FAILED, error=shorten(sentence))
            self._tell(progress, reason=reason, fault=reason.verdict.fault)

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
                queue=self._to.queue,
            )
            on_kept = partial(self._on_number, self._sequence + 1)
            self._sequence += self._outbox.put(
                report, is_vital=is_vital, reporting_key=self._to.reporting_key, on_kept=on_kept
            )
