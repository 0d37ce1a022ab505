"""Experiments that no queue holds any more are published again; those that can never start any more are ended.

A message may be lost with its broker or its retention; the registry still knows the experiment, and has the sealed
message. One worker of all looks for such experiments at a time. A message too many is harmless: whoever gets it meets
the lease, or the end.
"""

import itertools
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from jobqueue.envelope import verify
from jobqueue.errors import JobqueueError
from jobqueue.lifecycle import Reason
from jobqueue.publishing import Publisher
from jobqueue.registry.base import Submission
from jobqueue.routing import first_queue
from workers.attempt.supervise import Attempt
from workers.bootstrap import Node

log = logging.getLogger(__name__)

ROLE: Final = "sweep"
# Nobody has seen it for so many leases: neither its submission, nor a delivery, nor an attempt.
UNSEEN_LEASES: Final = 5
AT_ONCE: Final = 1000


class Sweeper:
    """Looks after lost experiments, on a thread of its own.

    Args:
        node: the worker's ports.
        publisher: for the broker of that worker; closed with the sweeper.
    """

    def __init__(self, node: Node, publisher: Publisher) -> None:
        self._site, self._broker, self._publisher = node.site, node.broker, publisher
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin; the first look comes after one lease."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self._publisher.close()

    def sweep(self) -> None:
        """Look once, unless another worker does.

        Raises:
            BrokerUnavailable, RegistryUnavailable: some or all remain to be looked after.
        """
        ledger, lease = self._site.registry.ledger, self._site.lease
        if not ledger.elect(ROLE, self._site.worker_id, ttl=2 * lease):
            return
        lost = sorted(ledger.lost(UNSEEN_LEASES * lease, limit=AT_ONCE), key=lambda found: found.queue)
        for queue, found in itertools.groupby(lost, key=lambda submission: submission.queue):
            self._look_after(queue, list(found))

    def _run(self) -> None:
        while not self._closed.wait(self._site.lease.total_seconds()):
            try:
                self.sweep()
            except JobqueueError as error:
                log.warning("sweep.put_off", extra={"error": error.message})
            except Exception:  # one experiment's trouble must not end the sweep of all
                log.exception("sweep.failed")

    def _look_after(self, queue: str, found: Sequence[Submission]) -> None:
        now = datetime.now(UTC)
        if not self._broker.queues.exists(queue):
            for submission in found:
                self._end(submission, Reason.QUEUE_DELETED)
            return
        waiting = [submission for submission in found if submission.expires_at > now]
        for submission in found:
            if submission.expires_at <= now:
                self._end(submission, Reason.EXPIRED)
        depth = self._broker.queues.depth(queue)
        # As many messages as experiments: they wait in the queue, and none is lost.
        if depth.ready + (depth.unacked or 0) < len(waiting):
            self._publish_again(queue, waiting)

    def _publish_again(self, queue: str, submissions: Sequence[Submission]) -> None:
        first = first_queue(queue)
        target = first if self._broker.queues.exists(first) else queue
        self._publisher.publish([replace(submission, queue=target) for submission in submissions])
        self._site.registry.ledger.republished([submission.id for submission in submissions])
        log.warning("sweep.republished", extra={"queue": queue, "experiments": len(submissions)})

    def _end(self, submission: Submission, reason: Reason) -> None:
        """Have it end as a delivery would: with a marker, a report, and the registry told."""
        try:
            message = verify(
                submission.message, keys=self._site.keys, queue=submission.queue, now=submission.submitted_at
            )
        except JobqueueError as error:
            log.warning("sweep.not_ended", extra={"experiment": submission.id, "error": error.message})
            return
        log.warning("sweep.ended", extra={"experiment": submission.id, "reason": reason.name})
        attempt = Attempt(self._site, message)
        attempt.ask(reason)
        attempt.run()
