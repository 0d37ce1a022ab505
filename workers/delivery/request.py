"""What becomes of one delivery once its task is over, on the main thread; and what revoke means for an experiment."""

import logging
from datetime import timedelta
from typing import Any, Final

from celery.utils.serialization import get_pickled_exception
from celery.worker.request import Request
from celery.worker.state import task_ready

from jobqueue.lifecycle import Reason
from jobqueue.routing import served_queue
from jobqueue.unprotected import Protection, is_off
from workers.bootstrap import Node, node_of
from workers.delivery.disposition import ExperimentEnded, HandedBack
from workers.delivery.returning import put_off
from workers.delivery.shared import shared_by

log = logging.getLogger(__name__)

AFTER_A_FAULT: Final = timedelta(seconds=5)


class ExperimentRequest(Request):
    """A delivery of an experiment's message: never lost, never acknowledged before its end is committed."""

    @property
    def node(self) -> Node:
        """The node that this worker belongs to."""
        return node_of(self.app)

    @property
    def queue(self) -> str:
        """The request queue that the delivery came from."""
        return served_queue(str(self.delivery_info["routing_key"]))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Do what the task decided; whatever else it raised is the platform's fault and is tried again later."""
        task_ready(self)
        error = get_pickled_exception(exc_info.exception)
        error = getattr(error, "exc", error)
        match error:
            case ExperimentEnded(is_dead_letter=True):
                self.set_aside(error)
                self.send_event("task-failed", exception=str(error), traceback="")
            case ExperimentEnded(is_cancelled=True):
                self.acknowledge()
                self.send_event("task-revoked", terminated=True, signum="SIGTERM", expired=False)
            case ExperimentEnded():
                self.acknowledge()
                self.send_event("task-failed", exception=str(error), traceback="")
            case HandedBack():
                self.hand_back(error.delay, why=str(error))
            case _:
                log.error(
                    "delivery.fault", extra={"experiment": self.id, "error": type(error).__name__}, exc_info=error
                )
                self.hand_back(AFTER_A_FAULT, why=type(error).__name__)

    def info(self, safe: bool = True) -> Any:  # noqa: ARG002, FBT001, FBT002 - Celery's signature
        """Return what `celery inspect` shows: never the envelope."""
        return super().info(safe=True)

    def acknowledge(self) -> None:
        """Let the message go for good: its experiment has ended, and no copy of it is worth a question any more."""
        super().acknowledge()
        shared_by(self.app).ends.note(bytes(self._message.body))

    def hand_back(self, delay: timedelta, *, why: str) -> None:
        """Let the message come back after `delay`, by a confirmed copy or by the broker's own means."""
        if is_off(Protection.DEFER):
            super().acknowledge()
        if self.acknowledged:
            return
        put_off(self._message, queue=self.queue, delay=delay, deliveries=self.node.site.deliveries)
        self.acknowledged = True
        self.send_event("task-retried", exception=why, traceback="")

    def set_aside(self, why: ExperimentEnded) -> None:
        """Move the message to the dead-letter queue."""
        if self.acknowledged:
            return
        refusals = shared_by(self.app).refusals
        move = refusals.set_aside if why.is_refusal else refusals.keep
        move(self._message, why.reason, queue=self.queue, detail=why.sentence)
        self.acknowledged = True

    def adopt(self, newer: Any) -> None:
        """Take over a redelivery: the older delivery is dead, its acknowledgement goes to this one."""
        self._message = newer
        self._on_ack = newer.ack_log_error
        self._on_reject = newer.reject_log_error
        self.node.redelivered(self.id, newer.properties)

    def revoked(self) -> bool:
        """Let Celery discard nothing: what was revoked has a tombstone, and its attempt commits the end."""
        return False

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Turn a revoke of a running experiment into a cancel; acknowledged when its end is committed."""
        del pool, signal
        self.node.ask(self.id, Reason.CANCELLED_BY_USER)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: FBT001, FBT002
        """Hand a running experiment back: the worker is going."""
        del pool, signal, emit_retry
        self.node.ask(self.id, Reason.DRAINED)
