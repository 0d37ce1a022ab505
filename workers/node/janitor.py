"""What earlier workers have left on this node: adopted where it still is the newest attempt, else removed.

A worker that was killed leaves a container, a folder and a lease file for each attempt that it ran. While nobody else
was granted the lease, a worker of the same name goes on with the attempt as if nothing had happened.
Where the registry says that the attempt is over or superseded, nothing of it stays. Where it does not answer, all is
left as it is, frozen by the guard if need be, and is looked at again.
"""

import logging
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Final

from jobqueue.envelope import Verified, verify
from jobqueue.errors import JobqueueError, NotFound, Superseded
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.registry.base import Lease, Record
from workers.attempt import workspace
from workers.attempt.lease import clock_seconds
from workers.attempt.lease_files import (
    KeptLease,
    LeaseFile,
    forget,
    forget_strays,
    name_of,
    read_boot_id,
    read_leases,
    read_message,
)
from workers.attempt.leftovers import tidy
from workers.attempt.runtimes.base import Container
from workers.attempt.supervise import Attempt, Left, holder_of, submission_of
from workers.bootstrap import Node
from workers.rounds import TELL_EVERY_SECONDS, Rounds
from workers.seldom import Seldom

log = logging.getLogger(__name__)

EVERY: Final = timedelta(minutes=1)
AGAIN: Final = timedelta(seconds=2)
# Whoever writes a lease file takes a moment.
STRAY: Final = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """What is left of one attempt: a container, a lease file, or both."""

    lease: Lease
    kept: KeptLease | None
    container: Container | None

    @property
    def name(self) -> str:
        """What its files and its folder are called."""
        return name_of(self.lease)


class Janitor:
    """Looks for orphans of one worker, and of workers of this node that are no longer there.

    Args:
        node: the worker's.
    """

    def __init__(self, node: Node) -> None:
        self._node, self._site = node, node.site
        self._is_settled = True
        self._unsettled = Seldom(TELL_EVERY_SECONDS)
        self._rounds = Rounds("janitor", self.look, every=lambda: EVERY if self._is_settled else AGAIN)

    def start(self) -> None:
        """Look at once, before the first message is taken; then now and then."""
        self._rounds.take()
        self._rounds.start()

    def close(self) -> None:
        """Stop looking."""
        self._rounds.close()

    def look(self) -> None:
        """Adopt or remove each orphan, if the registry and the engine let it.

        Raises:
            RuntimeFailure: the engine does not say what there is.
        """
        self._is_settled = False
        forget_strays(self._site.leases, after=STRAY)
        left = [orphan for orphan in self._find() if not self._try_to_settle(orphan)]
        self._is_settled = not left

    def _find(self) -> list[Orphan]:
        """Return what no attempt of this process owns."""
        # The files last: one that is written after its container was listed is then there.
        folders = {name_of(lease): lease for lease in workspace.list_attempts(self._site.folder, older_than=STRAY)}
        containers = {name_of(_lease_of(found)): found for found in self._site.runtime.find(self._site.node_id)}
        kept = read_leases(self._site.leases)
        found = []
        for name in sorted({*folders, *containers, *kept}):
            lease = kept[name].lease if name in kept else folders.get(name) or _lease_of(containers[name])
            if not self._node.is_running(lease.experiment_id):
                found.append(Orphan(lease=lease, kept=kept.get(name), container=containers.get(name)))
        return found

    def _try_to_settle(self, orphan: Orphan) -> bool:
        try:
            self._settle(orphan)
        except JobqueueError as error:
            self._unsettled.note()
            if count := self._unsettled.take(time.monotonic()):
                said = {"experiment": orphan.lease.experiment_id, "error": error.message, "count": count}
                log.warning("orphan.not_settled", extra=said)
            return False
        return True

    def _settle(self, orphan: Orphan) -> None:
        record = self._look_up(orphan.lease)
        if record is None and orphan.kept is None and orphan.container is None:
            return  # a folder alone, which may be another node's that has the same cache: only its end says what it is
        holder = orphan.kept.worker_id if orphan.kept else record.worker_id if record else None
        if holder not in (None, self._site.worker_id) and self._node.folder.is_alive(holder):
            return
        if holder is None or (record is not None and not _may_be_newest(orphan.lease, record)):
            self._remove(orphan)
        elif holder == self._site.worker_id:
            self._take_over(orphan, record)

    def _look_up(self, lease: Lease) -> Record | None:
        try:
            return self._site.registry.experiments.get(lease.experiment_id)
        except NotFound:
            return None

    def _take_over(self, orphan: Orphan, record: Record | None) -> None:
        """Go on with an attempt of this worker's, if it still is the newest one; else nothing of it stays."""
        message = self._read_message(orphan)
        renewed_at_seconds = clock_seconds()
        is_in_doubt = orphan.kept is None or orphan.kept.is_overdue(renewed_at_seconds)
        holder = replace(holder_of(message, self._site), is_in_doubt=is_in_doubt) if message else None
        try:
            cancel_reason = self._site.registry.leases.renew(orphan.lease, ttl=self._site.lease, holder=holder)
        except Superseded:
            self._remove(orphan)
            return
        is_there = orphan.container is not None or (orphan.kept is not None and orphan.kept.ended is not None)
        if orphan.kept is None or message is None or not is_there:
            self._remove(orphan)
            lost = Outcome(reason=Reason.WORKER_LOST, detail=self._site.worker_id)
            with suppress(Superseded):
                self._site.registry.leases.release(orphan.lease, lost, delay=timedelta(0))
            return
        left = Left(
            kept=orphan.kept,
            container=orphan.container,
            record=record or Record(submission=submission_of(message)),
            renewed_at_seconds=renewed_at_seconds,
            cancel_reason=cancel_reason,
        )
        self._adopt(Attempt(self._site, message), left)

    def _read_message(self, orphan: Orphan) -> Verified | None:
        """Return the message of an attempt that can be gone on with: its machine was not started anew since."""
        sealed = read_message(self._site.leases, orphan.name)
        if orphan.kept is None or sealed is None or orphan.kept.boot_id != read_boot_id():
            return None
        try:
            return verify(sealed, keys=self._site.keys, queue=orphan.kept.queue, now=datetime.now(UTC))
        except JobqueueError as error:
            log.warning("message.refused", extra={"experiment": orphan.lease.experiment_id, "error": error.message})
            return None

    def _adopt(self, attempt: Attempt, left: Left) -> None:
        """Run it on a thread of its own; it takes a place of this worker's."""
        running = ExitStack()
        # Here, so that nobody takes it for an orphan, and no message for its place, before the thread is there.
        running.enter_context(self._node.running(left.kept.experiment_id, attempt, None))
        Thread(target=_go_on, args=(attempt, left, running), name=f"adopted-{left.kept.name}", daemon=True).start()

    def _remove(self, orphan: Orphan) -> None:
        """Leave nothing of it on this node; what cannot be removed now is not forgotten, but tried at each look."""
        log.warning("orphan.removed", extra={"experiment": orphan.lease.experiment_id, "attempt": orphan.lease.attempt})
        if orphan.container is not None:
            orphan.container.remove()
        if orphan.kept is not None:
            tidy(LeaseFile(self._site.leases, orphan.kept), site=self._site)
        elif workspace.remove(workspace.attempt_folder(self._site.folder, orphan.lease)):
            forget(self._site.leases, orphan.name)  # what could not be read


def _go_on(attempt: Attempt, left: Left, running: ExitStack) -> None:
    with running:
        try:
            attempt.resume(left)
        except Exception:  # the edge of a thread; its message comes back when the lease is over
            log.exception("attempt.failed", extra={"experiment": left.kept.experiment_id})


def _lease_of(container: Container) -> Lease:
    labels = container.labels
    return Lease(experiment_id=ExperimentId(labels.experiment_id), token=labels.token, attempt=labels.attempt)


def _may_be_newest(lease: Lease, record: Record) -> bool:
    """Tell whether nobody was granted the lease later, and it was neither given back nor is the end recorded.

    A lower token is of a registry that has forgotten: a renewal says what becomes of the lease.
    """
    is_held = record.token == lease.token and record.worker_id is not None
    return (is_held or record.token < lease.token) and not record.state.is_final
