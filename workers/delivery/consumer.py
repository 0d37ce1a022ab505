"""What looks at every message before Celery does.

Tiny malformed messages would end a stock worker, stay in the queue, and end the next one. Here, what is not ours goes
to the dead-letter queue, what is not signed by a trusted sender is dropped without an answer, and a redelivery of what
already runs here replaces the dead delivery.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import active_requests, reserved_requests

from jobqueue.envelope import Verified
from jobqueue.routing import served_queue
from jobqueue.unprotected import Protection, is_off
from workers.bootstrap import node_of
from workers.delivery.absent import Absent
from workers.delivery.gate import Gate, source_of
from workers.delivery.intake import Intake
from workers.delivery.returning import requeue
from workers.delivery.room import Room, make_room
from workers.delivery.shared import shared_by
from workers.delivery.turns import Turns

log = logging.getLogger(__name__)

LOOK_FOR_QUEUES_SECONDS: Final = 1.0
# Whether anything comes from the queue whose turn it is shows sooner; another worker may have been first.
NEXT_TURN_SECONDS: Final = 0.1


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
        self._stopped: set[str] = set()
        self._late: list[Any] = []
        self._turns = Turns()
        self._is_next_due = False
        # Workers need not know each other: a cancel is a tombstone in the registry, not a list that workers pass on.
        alone = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(on_task_request, worker_options=alone, **options)
        shared = shared_by(self.app)
        self._gate = Gate(node_of(self.app), turns=self._turns, ends=shared.ends, refusals=shared.refusals)

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
        transport: Any = connection.transport
        transport.is_refused = self._is_refused
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
        is_resting = self._room is not None and self._room.is_resting
        return is_free and not is_resting and node.may_try(self.pool.busy) and node.site.takes_more

    def _look_for_queues(self) -> None:
        self._gate.refusals.tell_rest()
        self._require_connection()
        self._rearrange()

    def _require_connection(self) -> None:
        """Have Celery connect anew: what a callback met was only logged, and would come to light a minute later."""
        if self._is_broken or (self.connection is not None and not self.connection.connected):
            raise ConnectionError("the connection to the broker has ended")

    def _rearrange(self) -> None:
        """Listen at the queues whose turn it is, and look again soon where others wait for what comes of it."""
        self._learn()  # or a place that is free now would take from what was paused a moment ago
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
        scout = shared_by(self.app).scout
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
                self._gate.failed(message)

        return on_message

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Set aside what cannot even be decoded."""
        self._gate.set_aside(message, type(exc).__name__)

    def _take(self, message: Any, handle: Callable[[Any], None]) -> None:
        verified = self._gate.let_in(message)
        if verified is None:
            self._intake.passed_over(source_of(message))
            return
        if (running := self._running(verified)) is not None:
            log.info("delivery.adopted", extra={"experiment": running.id})
            running.adopt(message)
            return
        if _is_stopping():
            # Given back now it would come again, and to stop consuming here may be within Celery's own stop.
            self._late.append(message)
            return
        if not self._intake.is_open:
            self._tell_intake(self._intake.refuse, message)
            return
        shared_by(self.app).scout.saw(verified.header)
        if self._room and not self._room.admit(message, verified):
            self._turns.note(verified.header.queue)
            self._intake.put_off(source_of(message))
            return
        try:
            handle(message)
        except Exception as error:  # what passes the check and still upsets Celery must not come back
            log.exception("delivery.refused_by_celery")
            self._gate.set_aside(message, type(error).__name__)
        else:
            self._tell_intake(self._intake.took, source_of(message))

    def _tell_intake(self, tell: Callable[[Any, Any], None], what: Any) -> None:
        """Tell of a sound message, and connect anew if that fails: it was handed on, or comes back with its channel."""
        try:
            tell(what, self.task_consumer)
        except Exception:  # it waits for answers of the broker, which may have gone
            log.exception("delivery.intake_failed")
            self._is_broken = True

    def _is_refused(self, message: Any) -> bool:
        """Tell of a message, before Celery or its library sees it, that it is refused for good."""
        is_refused = self._gate.is_refused(message)
        if is_refused:
            self._intake.passed_over(source_of(message))
        return is_refused

    def _running(self, verified: Verified) -> Any:
        """Return the request that runs this experiment on a delivery that died with its channel."""
        for request in (*active_requests, *reserved_requests):
            if request.id == verified.header.experiment_id and not request.acknowledged:
                is_same = bytes(request.message.body) == verified.message
                return request if is_same and _is_dead(request.message) else None
        return None


def _is_stopping() -> bool:
    """Tell whether Celery was told to stop; it notes an exit code, which may be zero."""
    asked: tuple[Any, ...] = (state.should_stop, state.should_terminate)
    return any(each is not None and each is not False for each in asked)


def _is_dead(message: Any) -> bool:
    """Tell whether the channel that brought a message is closed, so that it can no longer be acknowledged."""
    channel = message.channel
    return bool(getattr(channel, "closed", False)) or not getattr(channel, "is_open", True)
