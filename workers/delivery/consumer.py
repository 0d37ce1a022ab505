"""What looks at every message before Celery does.

Tiny malformed messages would end a stock worker, stay in the queue, and end the next one. Here, what is not ours goes
to the dead-letter queue, what is not signed by a trusted sender is dropped without an answer, and a redelivery of what
already runs here replaces the dead delivery.
"""

import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import active_requests, reserved_requests

from jobqueue.envelope import Verified, verify
from jobqueue.errors import BadEnvelope, BrokerUnavailable, Early, JobqueueError, NoSuchQueue, Untrusted
from jobqueue.lifecycle import Reason
from jobqueue.routing import served_queue
from jobqueue.unprotected import Protection, is_off
from workers.attempt.telling import answer
from workers.bootstrap import node_of
from workers.delivery.absent import Absent
from workers.delivery.intake import Intake
from workers.delivery.request import requeue, requeue_later
from workers.delivery.room import Room, make_room
from workers.delivery.scout import scout_of
from workers.delivery.shape import check_id, check_shape
from workers.delivery.turns import Turns

log = logging.getLogger(__name__)

LOOK_FOR_QUEUES_SECONDS: Final = 1.0
LOG_EVERY_SECONDS: Final = 1.0
# Whether anything comes from the queue whose turn it is shows sooner; another worker may have been first.
NEXT_TURN_SECONDS: Final = 0.1
LONGEST_WAIT: Final = timedelta(minutes=1)
# What upsets the check once may be this worker's own trouble; what upsets it each time must not come back for ever.
CHANCES: Final = 3
_REMEMBERED_FAILURES: Final = 1000


class Consumer(CeleryConsumer):
    """Celery's consumer behind a check of every message."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc,valid-type]  # a class, untyped
        """Celery's steps, less the one that would declare 28 queues on RabbitMQ."""

        default_steps = tuple(
            step for step in CeleryConsumer.Blueprint.default_steps if "delayed_delivery" not in str(step)
        )

    task_consumer: Any = None
    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]
    _absent: Absent | None = None
    _room: Room | None = None
    _is_broken = False

    def __init__(self, on_task_request: Any, *, worker_options: Any = None, **options: Any) -> None:
        self.refused: Counter[str] = Counter()
        self._logged_at = 0.0
        self._failures: deque[bytes] = deque(maxlen=_REMEMBERED_FAILURES)
        self._stopped: set[str] = set()
        self._late: list[Any] = []
        self._turns = Turns()
        self._is_next_due = False
        # Workers need not know each other: a cancel is a tombstone in the registry, not a list that workers pass on.
        alone = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(on_task_request, worker_options=alone, **options)

    def connect(self) -> Any:
        """Connect, and consume only queues that exist: a worker never creates one."""
        connection = super().connect()
        self._is_broken = False
        self._absent = self._absent or Absent(node_of(self.app).settings.queue_refresh)
        self._intake = Intake(
            node_of(self.app),
            queues=self.app.amqp.queues,
            has_place=self._has_place,
            turns=self._turns,
            absent=self._absent,
            stopped=self._stopped,
        )
        self._room = self._room or make_room(node_of(self.app))
        self._learn()
        self._intake.begin()
        return connection

    def register_with_event_loop(self, hub: Any) -> None:
        """Look for queues that are not there yet, and for those to be consumed again."""
        super().register_with_event_loop(hub)
        self.pool.on_free_place = self._rearrange
        hub.timer.call_repeatedly(LOOK_FOR_QUEUES_SECONDS, self._look_for_queues)

    def stop(self) -> None:
        """Take nothing more, and give back at once what came when it was told to stop."""
        super().stop()
        while self._late:
            requeue(self._late.pop())

    def cancel_task_queue(self, queue: Any) -> None:
        """Stop taking from a request queue until an operator says otherwise."""
        self._stopped.add(served_queue(queue))
        self._rearrange()

    def add_task_queue(self, queue: Any, *_: Any, **__: Any) -> Any:
        """Take from one of this worker's request queues again; no other one is served, or created."""
        self._stopped.discard(served_queue(queue))
        self._look_for_queues()

    def _has_place(self) -> bool:
        node = node_of(self.app)
        is_free = not _is_stopping() and bool(self.pool.busy + node.adopted < min(self.pool.limit, node.still_runs))
        return is_free and not (self._room and self._room.is_resting) and node.site.takes_more

    def _look_for_queues(self) -> None:
        self._require_connection()
        self._learn()
        self._rearrange()

    def _require_connection(self) -> None:
        """Have Celery connect anew: what a callback met was only logged, and would come to light a minute later."""
        if self._is_broken or (self.connection is not None and not self.connection.connected):
            raise ConnectionError("the connection to the broker has ended")

    def _rearrange(self) -> None:
        """Listen at the queues whose turn it is, and look again soon where others wait for what comes of it."""
        try:
            do_others_wait = self._intake.rearrange(self.task_consumer)
        except (*self.connection_errors, *self.channel_errors) as error:
            self._is_broken = True  # its channel is open again, without a consumer, and whoever called may only log it
            raise ConnectionError(f"the connection to the broker is of no use any more: {error}") from error
        if do_others_wait and not self._is_next_due:
            self._is_next_due = True
            self.timer.call_after(NEXT_TURN_SECONDS, self._on_next_due)

    def _on_next_due(self) -> None:
        self._is_next_due = False
        self._rearrange()

    def _learn(self) -> None:
        scout = scout_of(self.app)
        self._intake.learn(scout.selection.names, scout.found, closed=scout.paused)

    def create_task_handler(self, promise: Any = None) -> Callable[[Any], None]:
        """Return what is called with each message, on the main thread."""
        handle = super().create_task_handler(promise) if promise else super().create_task_handler()
        if is_off(Protection.CONSUMER):
            return handle

        def on_message(message: Any) -> None:
            try:
                self._take(message, handle)
            except Exception:  # no message may end the worker
                log.exception("delivery.check_failed")
                self._on_failed_check(message)

        return on_message

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Set aside what cannot even be decoded."""
        self._set_aside(message, Reason.BAD_ENVELOPE, type(exc).__name__)

    def _take(self, message: Any, handle: Callable[[Any], None]) -> None:
        verified = self._verify(message)
        if verified is None:
            return
        if (running := self._running(verified.header.experiment_id)) is not None:
            log.info("delivery.adopted", extra={"experiment": running.id})
            running.adopt(message)
            return
        if _is_stopping():
            self._late.append(message)
            return
        if not self._intake.is_open:
            self._tell_intake(self._intake.refuse, message)
            return
        scout_of(self.app).saw(verified.header)
        if self._room and not self._room.admit(message, verified):
            self._turns.note(verified.header.queue)
            return
        try:
            handle(message)
        except Exception as error:  # what passes the check and still upsets Celery must not come back
            log.exception("delivery.refused_by_celery")
            self._set_aside(message, Reason.BAD_ENVELOPE, type(error).__name__)
        else:
            self._tell_intake(self._intake.took, str(message.delivery_info["routing_key"]))

    def _tell_intake(self, tell: Callable[[Any, Any], None], what: Any) -> None:
        """Tell of a sound message, and connect anew if that fails: it was handed on, or comes back with its channel."""
        try:
            tell(what, self.task_consumer)
        except Exception:  # it waits for answers of the broker, which may have gone
            log.exception("delivery.intake_failed")
            self._is_broken = True

    def _verify(self, message: Any) -> Verified | None:
        """Return what a message is, or None when something else has become of it."""
        queue, keys = _queue_of(message), node_of(self.app).site.keys
        try:
            check_shape(message)
            verified = verify(bytes(message.body), keys=keys, queue=queue, now=datetime.now(UTC))
            check_id(message, verified)
        except Early as error:
            self._turns.note(queue)
            self._put_off(message, error)
        except Untrusted as error:
            if keys.trusts_any(queue):
                self._count(Reason.UNTRUSTED, queue, error.message)
                message.ack()
            else:
                self._requeue_unverified(message, f"nobody is trusted for the queue {queue} any more")
        except BadEnvelope as error:
            self._set_aside(message, Reason.BAD_ENVELOPE, error.message)
            answer(node_of(self.app).site, error, queue=queue)
        except JobqueueError as error:  # this node's own trouble, such as unreadable keys: the message is sound
            self._requeue_unverified(message, str(error))
        else:
            return verified
        return None

    def _on_failed_check(self, message: Any) -> None:
        """Give back what could not be examined; set it aside when that happens again and again."""
        try:
            digest = hashlib.sha256(repr(message.body).encode()).digest()
            self._failures.append(digest)
            if self._failures.count(digest) < CHANCES:
                requeue_later(message)
            else:
                self._set_aside(message, Reason.BAD_ENVELOPE, "it could not be examined")
        except Exception:  # the same edge: the message stays unacknowledged, and comes back with its channel
            log.exception("delivery.not_returned")

    def _put_off(self, message: Any, early: Early) -> None:
        """Let a message come back when its time has come."""
        queue = _queue_of(message)
        self._log_refusal("delivery.early", queue=queue, detail=early.message)
        try:
            node_of(self.app).site.deliveries.defer(message, queue=queue, delay=min(early.remaining, LONGEST_WAIT))
        except (BrokerUnavailable, NoSuchQueue) as error:
            log.warning("delivery.not_deferred", extra={"queue": queue, "error": error.message})
            requeue_later(message)

    def _requeue_unverified(self, message: Any, detail: str) -> None:
        self._log_refusal("delivery.not_verified", queue=_queue_of(message), detail=detail)
        requeue_later(message)

    def _running(self, experiment_id: str) -> Any:
        """Return the request that runs this experiment on a delivery that died with its channel."""
        for request in (*active_requests, *reserved_requests):
            if request.id == experiment_id and not request.acknowledged:
                return request if _is_dead(request.message) else None
        return None

    def _set_aside(self, message: Any, reason: Reason, detail: str) -> None:
        """Move a message to the dead-letter queue.

        It is not the end of an experiment, and none is reported: whoever can write to the queue can put a stranger's
        signed envelope under headers of his own.
        """
        queue = _queue_of(message)
        self._count(reason, queue, detail)
        try:
            node_of(self.app).site.deliveries.dead_letter(message, queue=queue, reason=reason.name, detail=detail)
        except (BrokerUnavailable, NoSuchQueue) as error:
            log.warning("delivery.not_set_aside", extra={"queue": queue, "error": error.message})
            requeue_later(message)

    def _count(self, reason: Reason, queue: str, detail: str) -> None:
        self.refused[reason.name] += 1
        self._log_refusal("delivery.refused", queue=queue, detail=detail, reason=reason.name)

    def _log_refusal(self, event: str, *, queue: str, detail: str, **fields: str) -> None:
        """Log at most one a second, never the message."""
        if time.monotonic() - self._logged_at >= LOG_EVERY_SECONDS:
            self._logged_at = time.monotonic()
            log.warning(event, extra={**fields, "queue": queue, "detail": detail, "total": self.refused.total()})


def _queue_of(message: Any) -> str:
    return served_queue(str((message.delivery_info or {}).get("routing_key", "")))


def _is_stopping() -> bool:
    """Tell whether Celery was told to stop; it notes an exit code, which may be zero."""
    asked: tuple[Any, ...] = (state.should_stop, state.should_terminate)
    return any(each is not None and each is not False for each in asked)


def _is_dead(message: Any) -> bool:
    """Tell whether the channel that brought a message is closed, so that it can no longer be acknowledged."""
    channel = message.channel
    return bool(getattr(channel, "closed", False)) or not getattr(channel, "is_open", True)
