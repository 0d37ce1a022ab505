"""Experiments that no queue holds any more are published again; those that can never start any more are ended.

A message may be lost with its broker or its retention; the registry still knows the experiment, and has the sealed
message. Of the workers that serve a queue, one at a time looks for such experiments. A message too many is harmless:
whoever gets it meets the lease, or the end. What this worker does not serve may be at another broker: of that, only
what has expired is ended.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from jobqueue.envelope import verify
from jobqueue.errors import JobqueueError
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason
from jobqueue.publishing import Publisher
from jobqueue.registry.base import Submission
from jobqueue.routing import first_queue
from workers.attempt.supervise import Attempt
from workers.bootstrap import Node
from workers.rounds import Rounds

log = logging.getLogger(__name__)

ROLE: Final = "sweep"
# Nobody has seen it for so many leases: neither its submission, nor a delivery, nor an attempt.
UNSEEN_LEASES: Final = 5
AT_ONCE: Final = 1000
# So many of those that seem to wait are published again even so, each once.
OLDEST: Final = 10


class Sweeper:
    """Looks after lost experiments, on a thread of its own.

    Args:
        node: the worker's ports.
        publisher: for the broker of that worker; closed with the sweeper.
    """

    def __init__(self, node: Node, publisher: Publisher) -> None:
        self._site, self._broker, self._publisher = node.site, node.broker, publisher
        self._node = node
        self._doubted: deque[ExperimentId] = deque(maxlen=AT_ONCE)
        self._rounds = Rounds("sweep", self.sweep, every=lambda: self._site.lease)

    def start(self) -> None:
        """Begin; the first look comes after one lease."""
        self._rounds.start()

    def close(self) -> None:
        """Stop looking."""
        self._rounds.close()
        self._publisher.close()

    def sweep(self) -> None:
        """Look once, unless another worker does.

        Raises:
            BrokerUnavailable, RegistryUnavailable: some or all remain to be looked after.
        """
        ledger, lease = self._site.registry.ledger, self._site.lease
        elected = {
            name for name in self._node.queues if ledger.elect(f"{ROLE} {name}", self._site.worker_id, ttl=2 * lease)
        }
        if not elected:
            return
        paused = self._site.registry.pauses.paused()
        for queue in sorted(elected):
            found = ledger.lost(UNSEEN_LEASES * lease, limit=AT_ONCE, queue=queue)
            self._look_after(queue, found, is_paused=queue in paused)
        now = datetime.now(UTC)
        for submission in ledger.lost(UNSEEN_LEASES * lease, limit=AT_ONCE):
            if submission.expires_at <= now:
                self._end(submission, Reason.EXPIRED)

    def _look_after(self, queue: str, found: Sequence[Submission], *, is_paused: bool) -> None:
        if not found:
            return
        if not self._broker.queues.exists(queue):
            for submission in found:
                self._end(submission, Reason.QUEUE_DELETED)
            return
        now = datetime.now(UTC)
        waiting = [submission for submission in found if submission.expires_at > now]
        if not is_paused:  # else nobody was to see them
            missing = self._oldest(waiting) if self._holds(queue, len(waiting)) else waiting
            if missing:
                self._publish_again(queue, missing)
        # Looked after now: it is not the first to be found for a while, or the oldest would hide the rest.
        self._site.registry.ledger.republished([submission.id for submission in waiting])

    def _oldest(self, waiting: Sequence[Submission]) -> list[Submission]:
        """Return the few that were submitted first, each once: what was lost is older than all that waits.

        A queue that is never empty may hold messages of others, or several of one experiment.
        """
        new = [submission for submission in waiting if submission.id not in self._doubted]
        oldest = sorted(new, key=lambda submission: submission.id)[:OLDEST]
        self._doubted += [submission.id for submission in oldest]
        return oldest

    def _holds(self, queue: str, count: int) -> bool:
        """Tell whether a queue holds as many messages as experiments: then nearly all of them wait there."""
        depth = self._broker.queues.depth(queue)
        return depth.ready + (depth.unacked or 0) >= count

    def _publish_again(self, queue: str, submissions: Sequence[Submission]) -> None:
        first = first_queue(queue)
        target = first if self._broker.queues.exists(first) else queue
        self._publisher.publish([replace(submission, queue=target) for submission in submissions])
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
