"""The check of every message, before Celery or a transport does anything with it, and what becomes of what fails it."""

import hashlib
import logging
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from jobqueue.envelope import Verified, verify
from jobqueue.errors import BadEnvelope, Early, JobqueueError, KeyRefused, Untrusted
from jobqueue.lifecycle import Reason
from jobqueue.routing import served_queue
from workers.attempt.telling import answer
from workers.bootstrap import Node
from workers.delivery.ends import Ends
from workers.delivery.refusals import Refusals
from workers.delivery.returning import put_off, requeue_later
from workers.delivery.shape import check_id, check_shape
from workers.delivery.turns import Turns

log = logging.getLogger(__name__)

LONGEST_WAIT: Final = timedelta(minutes=1)
# What upsets the check once may be this worker's own trouble; what upsets it each time must not come back for ever.
CHANCES: Final = 3
_REMEMBERED_FAILURES: Final = 1000
# What came again although its experiment has ended here is no refusal of `lifecycle`: it is counted beside them.
REPEATED: Final = "REPEATED"


class _Worthless(Exception):
    """A message that nobody needs any more, or whose sender nobody trusts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Gate:
    """Lets sound messages of trusted senders in. Main thread only.

    Args:
        node: the worker.
        turns: the order in which request queues were served.
        ends: the messages whose experiments have ended here.
        refusals: what was refused here.
    """

    def __init__(self, node: Node, *, turns: Turns, ends: Ends, refusals: Refusals) -> None:
        self._node, self._turns, self._ends, self.refusals = node, turns, ends, refusals
        self._failures: deque[bytes] = deque(maxlen=_REMEMBERED_FAILURES)

    def let_in(self, message: Any) -> Verified | None:
        """Return what a message is, or None when something else has become of it."""
        queue = queue_of(message)
        try:
            return self._check(message, queue)
        except _Worthless as error:
            self.refusals.drop(message, error.reason, queue=queue, detail=error.detail)
        except Early as error:
            self._turns.note(queue)
            self._put_off(message, error)
        except BadEnvelope as error:
            self.set_aside(message, error.message)
            answer(self._node.site, error, queue=queue)
        except JobqueueError as error:  # this node's own trouble, such as unreadable keys: the message is sound
            self.refusals.tell("delivery.not_verified", queue=queue, detail=str(error))
            requeue_later(message)
        return None

    def is_refused(self, message: Any) -> bool:
        """Tell whether a message is to be removed for good, which is counted; any other one takes its usual way."""
        queue = queue_of(message)
        try:
            self._check(message, queue)
        except _Worthless as error:
            reason, detail = error.reason, error.detail
        except BadEnvelope as error:
            if not self.refusals.is_full(queue):
                return False
            reason, detail = Reason.BAD_ENVELOPE.name, error.message
        except Exception:  # noqa: BLE001 - it will show again on the usual way, where that is dealt with
            return False
        else:
            return False
        self.refusals.note_dropped(reason, queue=queue, detail=detail)
        return True

    def set_aside(self, message: Any, detail: str) -> None:
        """Move what cannot be an experiment's message to the dead-letter queue."""
        self.refusals.set_aside(message, Reason.BAD_ENVELOPE.name, queue=queue_of(message), detail=detail)

    def failed(self, message: Any) -> None:
        """Give back what could not be examined; when that happens again and again, set it aside, or else drop it."""
        try:
            digest = hashlib.sha256(repr(message.body).encode()).digest()
            self._failures.append(digest)
            if self._failures.count(digest) < CHANCES:
                requeue_later(message)
            else:
                self._set_aside_or_drop(message, "it could not be examined")
        except Exception:  # the same edge: the message stays unacknowledged, and comes back with its channel
            log.exception("delivery.not_returned")

    def _set_aside_or_drop(self, message: Any, detail: str) -> None:
        try:
            self.set_aside(message, detail)
        except Exception:  # whatever is in it that no copy can carry
            log.exception("delivery.not_copied")
            self.refusals.drop(message, Reason.BAD_ENVELOPE.name, queue=queue_of(message), detail=detail)

    def _check(self, message: Any, queue: str) -> Verified:
        check_shape(message)
        body = bytes(message.body)
        if body in self._ends:
            raise _Worthless(REPEATED, "its experiment has ended here")
        keys = self._node.site.keys
        try:
            verified = verify(body, keys=keys, queue=queue, now=datetime.now(UTC))
        except Untrusted as error:
            if keys.trusts_any(queue):
                raise _Worthless(Reason.UNTRUSTED.name, error.message) from None
            raise KeyRefused(f"nobody is trusted for the queue {queue} any more") from None
        check_id(message, verified)
        return verified

    def _put_off(self, message: Any, early: Early) -> None:
        """Let a message come back when its time has come."""
        queue = queue_of(message)
        self.refusals.tell("delivery.early", queue=queue, detail=early.message)
        delay = min(early.remaining, LONGEST_WAIT)
        put_off(message, queue=queue, delay=delay, deliveries=self._node.site.deliveries)


def queue_of(message: Any) -> str:
    """Return the request queue that a message came from."""
    return served_queue(source_of(message))


def source_of(message: Any) -> str:
    """Return the queue that a message lay in: a request queue, or what is served before one."""
    return str((message.delivery_info or {}).get("routing_key", ""))
